"""Stop training when the score no longer improves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from batteries import distributed
from batteries._direction import said_direction
from batteries._foreign import values_in
from batteries._numbers import as_number, as_whole


class EarlyStopping:
    """Says when the score has not improved for `patience` checks in a row.

    >>> stopper = EarlyStopping(patience=2, metric_minimization=True)
    >>> [stopper.step(loss) for loss in [0.5, 0.4, 0.4, float("nan")]]
    [False, False, False, True]
    >>> stopper.best_score, stopper.best_epoch
    (0.4, 2)

    As in Keras and Lightning, a score is an improvement if it is better than the best score by
    more than `min_delta`. NaN and infinities are never an improvement. In a process group, all
    ranks call `step`, and rank 0's score decides for all.

    Call `step` before `make_checkpoint`. Otherwise a resumed run lacks the last check. After
    `resume`, `stopped` says whether the run had already stopped.

    Args:
        patience: The number of checks without an improvement after which to stop; 0 counts as 1.
        metric_minimization: Whether lower is better: True for a loss, False for accuracy.
        min_delta: A score that is better by this much, or by less, is no improvement; 0 or more.

    Attributes:
        best_score: The best score so far; None before the first finite score.
        best_epoch: The number of the check with the best score, counted from 1.

    Raises:
        TypeError: `metric_minimization` is missing, or an argument has another type.
        ValueError: `patience` or `min_delta` is negative.
    """

    def __init__(
        self,
        patience: int = 5,
        *,
        metric_minimization: bool | None = None,
        min_delta: float = 0.0,
    ) -> None:
        self.patience = as_whole(patience, "patience", 0)
        self.min_delta = as_number(min_delta, "min_delta")
        if not self.min_delta >= 0:
            raise ValueError(f"min_delta is {min_delta}; expected 0 or more")
        self.metric_minimization = said_direction(metric_minimization, "EarlyStopping")
        self.best_score: float | None = None
        self.best_epoch: int | None = None
        self._checks = 0

    def step(self, score: float | Tensor | None) -> bool:
        """Add the score of an epoch; return whether to stop.

        `stopper(score)` does the same. On ranks other than 0 the score may be None.

        Raises:
            TypeError: The score is not one number. All ranks raise it.
        """
        main = distributed.is_main()
        own = distributed.together(lambda: as_number(score, "the score") if main else 0.0)
        agreed = distributed.broadcast(own)
        self._checks += 1
        if self._is_better(agreed):
            self.best_score, self.best_epoch = agreed, self._checks
            return False
        return self.stopped

    __call__ = step

    @property
    def stopped(self) -> bool:
        """Whether the last check said to stop, also after a resume."""
        since = self._checks - (self.best_epoch or 0)
        return since > 0 and since >= self.patience

    def _is_better(self, score: float) -> bool:
        if not math.isfinite(score):
            return False
        if self.best_score is None:
            return True
        gain = self.best_score - score if self.metric_minimization else score - self.best_score
        return gain > self.min_delta

    def state_dict(self) -> dict[str, Any]:
        """The state as plain numbers: best_score, best_epoch and checks."""
        return {
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "checks": self._checks,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`.

        Raises:
            KeyError, TypeError: The state does not come from `state_dict`.
        """
        names = "best_score", "best_epoch", "checks"
        score, epoch, checks = values_in(state, "EarlyStopping.state_dict", *names)
        self._checks = as_whole(checks, "checks", 0)
        self.best_score = None if score is None else as_number(score, "best_score")
        self.best_epoch = None if epoch is None else as_whole(epoch, "best_epoch", 1)
