"""Model soups: average checkpoints while the validation score does not fall."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from batteries._direction import said_direction
from batteries._files import PathLike, listed
from batteries._numbers import as_number
from batteries.averaging._checkpoints import average_checkpoints

_logger = logging.getLogger(__name__)


class Decision(NamedTuple):
    """The decision about one checkpoint.

    >>> Decision(Path("exp_3.pth"), alone=0.9, together=0.91, taken=True).taken
    True

    Attributes:
        path: The file.
        alone: The score of this checkpoint alone.
        together: The score of the soup with this checkpoint.
        taken: Whether it stays in the soup.
    """

    path: Path
    alone: float
    together: float
    taken: bool


class Soup(NamedTuple):
    """An average of checkpoints, and the decisions that led to it.

    >>> Soup(state={}, score=0.9, paths=[], decisions=[]).score
    0.9

    Attributes:
        state: The averaged weights, as the state dict of a model.
        score: The score of this average.
        paths: The checkpoints in it.
        decisions: The decision about each checkpoint, in the order of the attempts. A checkpoint
            whose own score is not finite is not tried, and has no decision.
    """

    state: OrderedDict[str, Any]
    score: float
    paths: list[Path]
    decisions: list[Decision]


def greedy_soup(
    paths: Iterable[PathLike],
    evaluate: Callable[[OrderedDict[str, Any]], float],
    *,
    metric_minimization: bool | None = None,
) -> Soup:
    """Average checkpoints, beginning with the best, without those that make the score worse.

    >>> for epoch, weight in enumerate([1.0, 4.0, 9.0]):
    ...     save_checkpoint({"model_state_dict": {"w": torch.tensor(weight)}}, f"exp_{epoch}.pth")
    >>> paths = ["exp_0.pth", "exp_1.pth", "exp_2.pth"]
    >>> def error(state):
    ...     return abs(float(state["w"]) - 3)
    >>> soup = greedy_soup(paths, error, metric_minimization=True)
    >>> [path.name for path in soup.paths], soup.score
    (['exp_1.pth', 'exp_0.pth'], 0.5)

    This is the greedy soup of arXiv 2203.05482. Checkpoints are tried in the order of their own
    scores. A checkpoint stays in the average if the score of the average does not get
    worse. Each decision is logged at the level INFO: `get_logger("batteries")` shows them.

    The checkpoints are chosen by the score of `evaluate`, so this score is optimistic: it is never
    worse than the score of the best checkpoint. Score the soup on other data.

    Args:
        paths: Checkpoints of one model.
        evaluate: Loads a state dict into a model, computes batch norm's statistics again if there
            are any (`update_bn`), and returns the validation score.
        metric_minimization: Whether lower is better. Required.

    Raises:
        TypeError: No `metric_minimization`, or `evaluate` did not return one number.
        ValueError: No checkpoints, or none with a finite score.
        Exception: An error of `average_checkpoints` or of `evaluate`.
    """
    sign = -1 if said_direction(metric_minimization, "greedy_soup") else 1

    def score(some: list[Path]) -> float:
        return as_number(evaluate(average_checkpoints(some)), "the result of evaluate")

    scored = [(path, score([path])) for path in listed(paths)]
    ranked = sorted(
        ((path, alone) for path, alone in scored if math.isfinite(alone)),
        key=lambda pair: -sign * pair[1],
    )
    if not ranked:
        raise ValueError(
            f"greedy_soup: evaluate returned NaN for all of the {len(scored)} checkpoints (an "
            "infinity counts as NaN): try evaluate on one of them"
            if scored
            else "there are no checkpoints to average: greedy_soup got no paths"
        )
    soup, best = [ranked[0][0]], ranked[0][1]
    decisions = [_logged(Decision(ranked[0][0], best, best, taken=True))]
    for path, alone in ranked[1:]:
        together = score([*soup, path])
        taken = math.isfinite(together) and sign * together >= sign * best
        decisions.append(_logged(Decision(path, alone, together, taken)))
        if taken:
            soup, best = [*soup, path], together
    return Soup(average_checkpoints(soup), best, soup, decisions)


def _logged(made: Decision) -> Decision:
    verdict = "stays in" if made.taken else "is left out of"
    text = "%s (%.6g alone) %s the soup: %.6g with it"
    _logger.info(text, made.path, made.alone, verdict, made.together)
    return made
