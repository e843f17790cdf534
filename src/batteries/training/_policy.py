"""A rule for skipping steps: the loss or the gradient is not finite, or far too large."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from batteries import distributed
from batteries._foreign import values_in
from batteries._numbers import as_number, as_whole
from batteries.distributed._groups import Group, ranks_of
from batteries.training._clipping import whole


class StepPolicy:
    """Decides whether to take a step, from the gradient's norm and the loss, for all ranks.

    >>> policy = StepPolicy("skip", spike=4.0, history=3)
    >>> [policy.accepts(norm) for norm in [1.0, 1.1, 0.9, 8.0, float("nan"), 1.0]]
    [True, True, True, False, False, True]
    >>> policy.skipped
    {'not finite': 1, 'spike': 1}

    In a loop, write `if policy.accepts(window.clip(optimizer, 1.0), loss): window.step(optimizer)`
    and call `optimizer.zero_grad()` in either case. On a GPU, the decision waits once a window for
    the gradient, as a `GradScaler` does. The ranks share three numbers in one all-reduce.

    Args:
        action: What happens if a number is not finite or the norm is a spike: "raise" an error, or
            "skip" the step.
        spike: A norm is a spike if it is above `spike` times the median of the last norms.
            Default: no norm is a spike.
        history: The number of norms in the median. The rule begins when it has that many. Spikes
            count too, so the median follows a lasting change after half of `history` steps, if
            `at_most` allows that many skipped steps.
        at_most: The most skipped steps in a row. More raise an error: the weights may be damaged.
        scaler: The `GradScaler` of the loop. If the gradient overflows and the loss is finite, the
            scaler skips the step itself. After other skipped steps the scaler is updated.
        group: The ranks that step together. Default: all ranks.

    Attributes:
        skipped: The number of skipped steps for each reason.

    Raises:
        ValueError: An unknown action, or a number out of range.
        TypeError: `spike` is not a number, or `history` or `at_most` is not a whole number.
    """

    def __init__(
        self,
        action: Literal["raise", "skip"] = "raise",
        *,
        spike: float | None = None,
        history: int = 100,
        at_most: int = 10,
        scaler: torch.amp.GradScaler | None = None,
        group: Group = None,
    ) -> None:
        if action not in ("raise", "skip"):
            raise ValueError(f"action is {action!r}; expected 'raise' or 'skip'")
        if spike is not None and not as_number(spike, "spike") > 1:
            raise ValueError(f"spike is {spike}; expected a number above 1, or None")
        self.skipped = {"not finite": 0, "spike": 0}
        self._action, self._spike = action, spike
        self._at_most = as_whole(at_most, "at_most", 0)
        self._norms: deque[float] = deque(maxlen=as_whole(history, "history", 1))
        self._steps = 0
        self._in_a_row = 0
        self._scaler: Any = scaler
        self._group = group

    def accepts(self, norm: Tensor | float, loss: Tensor | float | None = None) -> bool:
        """Whether to take this step. All ranks call it and get the same answer.

        Args:
            norm: The norm of the whole, unscaled gradient, which `window.clip` returns.
            loss: The loss of this rank. If `count` counts nothing in the batch, leave the loss out:
                it may be NaN.

        Raises:
            TypeError: `norm` or `loss` is not one number.
            FloatingPointError: The step is refused under `action="raise"`, or too many were
                skipped in a row. The message has the step. If a number is not finite, it also
                names the ranks.
        """
        own, ranks = _numbers(norm, loss), ranks_of(self._group)
        if ranks.size > 1:  # how many norms and losses are not finite, and the sum of the norms
            finite = own.isfinite()
            own = torch.cat([1 - finite.float(), own[:1].nan_to_num(0.0, 0.0, 0.0)])
            own = distributed.all_reduce(own, check=False, group=self._group)
            bad_norm, bad_loss, total = own.tolist()  # waits for the device
        else:
            total, lost = own.tolist()
            bad_norm, bad_loss = not math.isfinite(total), not math.isfinite(lost)
        self._steps += 1
        if bad_norm and not bad_loss and self._scales():
            return True  # the scaler skips the step and lowers its scale
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
                self._scaler.update()  # otherwise the scaler refuses to unscale the next gradient
            return
        if reason == "spike":
            told = (
                f"the norm {norm_of_all:g} is above {self._spike:g} times the median of the "
                f"{len(self._norms)} norms before it"
            )
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
        if self._at_most < 2:
            many = ", and the step before it was skipped" * self._at_most
        raise FloatingPointError(
            f"step {self._steps} is not taken: {told}{many * (self._action == 'skip')}. Resume "
            "from a checkpoint, with a lower learning rate or without the batch"
        )

    def state_dict(self) -> dict[str, Any]:
        """The history and the counts, as plain numbers."""
        counts = {"steps": self._steps, "in_a_row": self._in_a_row}
        return {"skipped": dict(self.skipped), "norms": list(self._norms), **counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`.

        Raises:
            KeyError, TypeError: The state does not come from `state_dict`.
        """
        names = "skipped", "norms", "steps", "in_a_row"
        told = "StepPolicy.state_dict"
        skipped, norms, steps, in_a_row = values_in(state, told, *names)
        counts = zip(self.skipped, values_in(skipped, told, *self.skipped), strict=True)
        skipped = {reason: as_whole(count, reason) for reason, count in counts}
        numbers = [as_number(norm, "a norm") for norm in norms]
        self._steps, self._in_a_row = as_whole(steps, "steps"), as_whole(in_a_row, "in_a_row")
        self.skipped, self._norms = skipped, deque(numbers, maxlen=self._norms.maxlen)


def _numbers(norm: Any, loss: Any) -> Tensor:
    """Norm and loss (0 if it is None), (2,), on the device of the norm."""
    own, other = _tensor(norm, "norm"), _tensor(0.0 if loss is None else loss, "loss")
    return torch.stack([own.float(), other.to(own.device, torch.float32)])


def _tensor(value: Any, name: str) -> Tensor:
    """A scalar on its device. Only numbers on the CPU are read, so nothing waits."""
    found = whole(value)
    if isinstance(found, Tensor) and found.numel() == 1:
        scalar: Tensor = found.detach()
        return scalar.reshape(()) if scalar.ndim else scalar
    return torch.tensor(as_number(found, name), dtype=torch.float32, device="cpu")
