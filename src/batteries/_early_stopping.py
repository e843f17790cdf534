"""When to stop, because the score no longer gets better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from batteries import distributed
from batteries._direction import said_direction


class EarlyStopping:
    """Says when the score has not become better for `patience` checks in a row.

    >>> stopper = EarlyStopping(patience=2, metric_minimization=True)
    >>> [stopper.step(loss) for loss in [0.5, 0.4, 0.4, float("nan")]]
    [False, False, False, True]
    >>> stopper.best_score, stopper.best_epoch
    (0.4, 2)

    As in Keras and Lightning, a score counts as better when it beats the best one by more than
    `min_delta`. NaN and infinities are never better. In a process group all ranks call `step`,
    and rank 0's score decides for all.

    Args:
        patience: Checks without an improvement after which to stop.
        metric_minimization: Whether lower is better: of a loss it is True, of accuracy False.
        min_delta: How much better counts, 0 or more.

    Attributes:
        best_score: The best score so far; None before the first finite one.
        best_epoch: The check at which it came, counted from 1.

    Raises:
        TypeError: No `metric_minimization`.
        ValueError: A negative `patience` or `min_delta`.
    """

    def __init__(
        self,
        patience: int = 5,
        *,
        metric_minimization: bool | None = None,
        min_delta: float = 0.0,
    ) -> None:
        if patience < 0:
            raise ValueError(f"patience is {patience}; expected 0 or more checks")
        if not min_delta >= 0:
            raise ValueError(f"min_delta is {min_delta}; expected 0 or more")
        self.patience = patience
        self.metric_minimization = said_direction(metric_minimization, "EarlyStopping")
        self.min_delta = min_delta
        self.best_score: float | None = None
        self.best_epoch: int | None = None
        self._checks = 0

    def step(self, score: float | Tensor | None) -> bool:
        """Take in the score of an epoch; whether to stop.

        >>> EarlyStopping(metric_minimization=True).step(0.5)
        False

        Also spelled `stopper(score)`. On ranks other than 0 the score may be None.
        """
        main = distributed.is_main()
        own = distributed.together(lambda: float(score) if main else 0.0)  # type: ignore[arg-type]
        number = distributed.broadcast(own)
        self._checks += 1
        if self._is_better(number):
            self.best_score, self.best_epoch = number, self._checks
            return False
        return self._checks - (self.best_epoch or 0) >= self.patience

    __call__ = step

    def _is_better(self, score: float) -> bool:
        if not math.isfinite(score):
            return False
        if self.best_score is None:
            return True
        gain = self.best_score - score if self.metric_minimization else score - self.best_score
        return gain > self.min_delta

    def state_dict(self) -> dict[str, Any]:
        """What is known, as plain numbers.

        >>> EarlyStopping(metric_minimization=True).state_dict()
        {'best_score': None, 'best_epoch': None, 'checks': 0}
        """
        return {
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "checks": self._checks,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`.

        >>> stopper = EarlyStopping(metric_minimization=True)
        >>> stopper.load_state_dict({"best_score": 0.5, "best_epoch": 3, "checks": 4})
        """
        self.best_score, self.best_epoch = state["best_score"], state["best_epoch"]
        self._checks = state["checks"]
