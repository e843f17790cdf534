"""Steps that are better not taken: a loss or a gradient that is not finite, or far too large."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from batteries import distributed
from batteries.distributed._groups import Group, ranks_of
from batteries.training._clipping import whole


class StepPolicy:
    """Says whether to take a step, by the norm of its gradient and by its loss, on all ranks alike.

    >>> policy = StepPolicy("skip", spike=4.0, history=3)
    >>> [policy.accepts(norm) for norm in [1.0, 1.1, 0.9, 8.0, float("nan"), 1.0]]
    [True, True, True, False, False, True]
    >>> policy.skipped
    {'not finite': 1, 'spike': 1}

    In a loop, `if policy.accepts(window.clip(optimizer, 1.0), loss): window.step(optimizer)`, and
    `optimizer.zero_grad()` in either case. The decision needs the norm: on a GPU it waits for the
    window's gradient, once, as a `GradScaler` does. Ranks share three numbers in one all-reduce.

    Args:
        action: "raise" an error where a number is not finite or the norm is a spike, or "skip" the
            step.
        spike: A norm above so many times the median of the last ones is a spike. Default: none is.
        history: The norms that the median is of. The rule begins when it has as many. Spikes are
            among them: a lasting change is followed after half of `history`, if `at_most` allows
            so many skipped steps in a row.
        at_most: An error after more skipped steps in a row: the weights may be damaged.
        scaler: The `GradScaler` of the loop. A gradient that overflows is left to it, if the loss
            is finite; and it is updated where a step is skipped.
        group: The ranks that step together, as in `accumulate`.

    Attributes:
        skipped: The number of steps skipped for each reason.

    Raises:
        ValueError: An unknown action, or a number out of range.
    """

    def __init__(
        self,
        action: Literal["raise", "skip"] = "raise",
        *,
        spike: float | None = None,
        history: int = 100,
        at_most: int = 10,
        scaler: Any = None,
        group: Group = None,
    ) -> None:
        if action not in ("raise", "skip"):
            raise ValueError(f"action is {action!r}; expected 'raise' or 'skip'")
        if spike is not None and not spike > 1:
            raise ValueError(f"spike is {spike}; expected a number above 1, or None")
        if history < 1 or at_most < 0:
            raise ValueError(
                f"history is {history} and at_most {at_most}; expected 1 and 0, or more"
            )
        self.skipped = {"not finite": 0, "spike": 0}
        self._action, self._spike, self._at_most = action, spike, at_most
        self._norms: deque[float] = deque(maxlen=history)
        self._steps = 0
        self._in_a_row = 0
        self._scaler = scaler
        self._group = group

    def accepts(self, norm: Tensor | float, loss: Tensor | float | None = None) -> bool:
        """Whether to take this step; all ranks call it, and get the same answer.

        >>> StepPolicy().accepts(torch.tensor(0.5), loss=0.1)
        True

        Args:
            norm: Of the whole gradient, unscaled: what `window.clip` returns.
            loss: Of this rank. Where `count` counts nothing in the batch it may be NaN: leave it
                out.

        Raises:
            FloatingPointError: By the rules above; it says at which step and on which ranks.
        """
        own, ranks = _numbers(norm, loss), ranks_of(self._group)
        if ranks.size > 1:  # a norm that is not finite, a loss, and the sum of norms
            finite = own.isfinite()
            own = torch.cat([1 - finite.float(), own[:1].nan_to_num(0.0, 0.0, 0.0)])
            own = distributed.all_reduce(own, check=False, group=self._group)
            bad_norm, bad_loss, total = own.tolist()  # waits for the device
        else:
            total, lost = own.tolist()
            bad_norm, bad_loss = not math.isfinite(total), not math.isfinite(lost)
        self._steps += 1
        if bad_norm and not bad_loss and self._scales():
            return True  # the scaler leaves out the step, and scales less from now on
        reason, norm_of_all = "", total / ranks.size
        if bad_norm or bad_loss:
            reason = "not finite"
        else:
            limit = self._limit()
            self._norms.append(norm_of_all)
            reason = "spike" if norm_of_all > limit else ""
        if not reason:
            self._in_a_row = 0
            return True
        self._refuse(reason, norm, loss, norm_of_all)
        return False

    def _scales(self) -> bool:
        return self._scaler is not None and bool(self._scaler.is_enabled())

    def _limit(self) -> float:
        full = self._spike is not None and len(self._norms) == self._norms.maxlen
        return (self._spike or 1) * statistics.median(self._norms) if full else math.inf

    def _refuse(self, reason: str, norm: Any, loss: Any, norm_of_all: float) -> None:
        self._in_a_row += 1
        if self._action == "skip" and self._in_a_row <= self._at_most:
            self.skipped[reason] += 1
            if self._scales():
                self._scaler.update()  # else it would take the next gradient for unscaled
            return
        if reason == "spike":
            told = f"the norm {norm_of_all:g} is above {self._spike:g} times the median of the last"
        else:
            values = [float("nan" if each is None else each) for each in (whole(norm), loss)]
            everybody = distributed.all_gather(values, check=False, group=self._group)
            told = "; ".join(
                f"on rank {rank} the norm is {own:g}"
                + (f", the loss {lost:g}" * (loss is not None))
                for rank, (own, lost) in enumerate(everybody)
                if not (math.isfinite(own) and (loss is None or math.isfinite(lost)))
            )
        many = f", and {self._at_most} steps before it were skipped in a row"
        raise FloatingPointError(
            f"step {self._steps} is not taken: {told}{many * (self._action == 'skip')}. Go on from "
            "a checkpoint, with a lower learning rate or without the batch"
        )

    def state_dict(self) -> dict[str, Any]:
        """What is known, as plain numbers.

        >>> StepPolicy(history=2).state_dict()
        {'skipped': {'not finite': 0, 'spike': 0}, 'norms': [], 'steps': 0, 'in_a_row': 0}
        """
        return {
            "skipped": dict(self.skipped),
            "norms": list(self._norms),
            "steps": self._steps,
            "in_a_row": self._in_a_row,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`.

        >>> StepPolicy().load_state_dict(StepPolicy().state_dict())
        """
        self.skipped = dict(state["skipped"])
        self._norms = deque(state["norms"], maxlen=self._norms.maxlen)
        self._steps, self._in_a_row = state["steps"], state["in_a_row"]


def _numbers(norm: Any, loss: Any) -> Tensor:
    """Norm and loss, which is 0 where it is not told, on the device of the norm."""
    norm = torch.as_tensor(whole(norm)).detach().float()
    if loss is None:
        return torch.stack([norm, norm.new_zeros(())])
    return torch.stack([norm, torch.as_tensor(whole(loss)).detach().to(norm)])
