"""Check whether test and leaderboard scores move with validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from batteries._digits import shown
from batteries._files import PathLike
from batteries._optional import import_optional
from batteries.scoreboard._info import RunInfo, folds_of, other_scores
from batteries.scoreboard._runs import run_info, run_infos

_FEW = 5  # runs that a verdict needs
_SEED = 42


class GapCheck(NamedTuple):
    """Whether another score moves with validation.

    >>> print(GapCheck("test", "accuracy", 8, None, None, "test moves with validation"))
    8 runs by accuracy: test moves with validation

    Attributes:
        against: The other score: "test", or "leaderboard.public".
        metric: The metric of validation. Each metric has a check of its own.
        runs: The number of runs that have both scores.
        correlation: Spearman's correlation of validation and the other score. None if there are
            fewer than five runs, or if one of the two scores is the same for all runs.
        interval: The correlation's 95 % interval, by resampling the runs; None without a
            correlation.
        verdict: What the interval says, in words.
    """

    against: str
    metric: str
    runs: int
    correlation: float | None
    interval: tuple[float, float] | None
    verdict: str

    def __str__(self) -> str:
        by = f" by {self.metric}" if self.metric else ""
        return f"{self.runs} run{'s' * (self.runs != 1)}{by}: {self.verdict}"


def check_gaps(runs: Sequence[RunInfo | PathLike]) -> list[GapCheck]:
    """Check over all runs whether test and each leaderboard move with validation.

    >>> check_gaps([])
    []

    Args:
        runs: Runs, or their paths: `read_runs(logdir)`.

    Returns:
        A check for each other score and each metric, if one or more runs have both scores. The
        checks of "test" come first.

    Raises:
        TypeError: `runs` is one path.
        LookupError: There is no such run.
        ModuleNotFoundError: scipy is not installed. A check of five or more runs needs it.
    """
    groups: dict[tuple[str, bool], list[RunInfo]] = {}
    infos = run_infos(runs)
    for run in infos:
        groups.setdefault((run.metric, run.minimization is True), []).append(run)
    found = []
    for name in sorted(
        {name for run in infos for name in _others(run)}, key=lambda n: (n != "test", n)
    ):
        for (metric, minimization), alike in groups.items():
            pairs = [(run.validation, _others(run).get(name)) for run in alike]
            found.append(_checked(name, metric, minimization, pairs))
    return [check for check in found if check.runs]


def _others(run: RunInfo) -> dict[str, float]:
    """The scores that are compared with validation."""
    test = {"test": run.scores["test"]} if "test" in run.scores else {}
    boards = run.scores.get("leaderboard", {})
    return {**test, **{f"leaderboard.{name}": score for name, score in boards.items()}}


def _checked(
    against: str, metric: str, minimization: bool, pairs: Sequence[tuple[Any, Any]]
) -> GapCheck:
    known = np.array([pair for pair in pairs if None not in pair], dtype=float).reshape(-1, 2)
    count = len(known)
    alike = [
        name
        for name, scores in zip(("validation", against), known.T, strict=True)
        if count and len(set(scores)) == 1
    ]
    if count >= _FEW and alike:
        verdict = f"all have the same {' and '.join(alike)} score, so no correlation can be seen"
        return GapCheck(against, metric, count, None, None, verdict)
    if count < _FEW:
        verdict = f"too few to say whether {against} moves with validation: {_FEW} are needed"
        return GapCheck(against, metric, count, None, None, verdict)
    stats: Any = import_optional("scipy.stats", for_="check_gaps")
    correlation = float(stats.spearmanr(known[:, 0], known[:, 1]).statistic)

    rows = np.random.default_rng(_SEED).integers(0, count, (2000, count))
    ranks = stats.rankdata(known[rows], axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    both = (ranks**2).sum(axis=1).prod(axis=1)
    # If all drawn scores are equal, the correlation counts as 0.
    drawn = ranks.prod(axis=2).sum(axis=1) / np.sqrt(np.where(both == 0, np.inf, both))
    low, high = (float(value) for value in np.quantile(drawn, [0.025, 0.975]))
    if low > 0:
        verdict = f"{against} moves with validation"
    elif high < 0:
        verdict = f"{against} moves against validation"
        if minimization:  # the direction of the other score is not known
            lower = metric or "validation"
            verdict += f": lower {lower} is better, so this is right if higher {against} is better"
    else:
        verdict = f"{count} runs are too few to show that {against} follows validation"
    return GapCheck(against, metric, count, correlation, (low, high), verdict)


def check_gap(run: RunInfo | PathLike) -> list[str]:
    """Check whether test and leaderboard scores of a run are inside the spread of its folds.

    >>> check_gap(RunInfo("001", Path("001"), scores={"folds": [0.90, 0.92, 0.94], "test": 0.91}))
    ['test - validation is -0.0100, inside the spread of 3 folds (0.9000 to 0.9400)']

    Each score has one text. Without a validation score there are none. With fewer than 2 folds,
    the texts have only the differences.

    Raises:
        LookupError: There is no such run.
    """
    run = run_info(run)
    folds, validation = folds_of(run), run.validation
    found = []
    for name, score in other_scores(run.scores):
        if validation is None:
            continue
        text = f"{name} - validation is {shown([score - validation], sign='+')[0]}"
        if len(folds) > 1:
            low, high = min(folds), max(folds)
            where = "inside" if low <= score <= high else "outside"
            least, most = shown([low, high])
            text += f", {where} the spread of {len(folds)} folds ({least} to {most})"
        found.append(text)
    return found
