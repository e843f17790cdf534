"""Two runs side by side, and whether their difference is more than noise."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from batteries.environment import program_directory
from batteries.files import PathLike
from batteries.scoreboard.runs import RunInfo, run_info

_SAMPLES = 2000
_SEED = 42


class Difference(NamedTuple):
    """A difference of two scores, and the interval that resampling gives it.

    >>> Difference(0.02, (0.01, 0.03), "5 folds").beyond_noise
    True
    """

    value: float
    interval: tuple[float, float]  # with 95 % probability
    by: str

    @property
    def beyond_noise(self) -> bool:
        """Whether no difference lies outside the interval."""
        low, high = self.interval
        return not low <= 0 <= high


@dataclass(frozen=True)
class Comparison:
    """What differs between two runs.

    >>> Comparison({"lr": (0.1, 0.2)}, {}, "", {}, None).arguments
    {'lr': (0.1, 0.2)}

    Attributes:
        arguments: By name, those of the first and of the second; None where it has none.
        versions: Of packages, likewise.
        code: What `git diff --stat` says between their commits.
        scores: By name.
        difference: Of the second's folds from the first's; None without folds.
    """

    arguments: dict[str, tuple[Any, Any]]
    versions: dict[str, tuple[Any, Any]]
    code: str
    scores: dict[str, tuple[Any, Any]]
    difference: Difference | None


def compare(first: RunInfo | PathLike, second: RunInfo | PathLike) -> Comparison:
    """What differs between two runs.

    >>> compare(RunInfo("1", Path("1")), RunInfo("2", Path("2"))).code
    'the commit of one is not known'
    """
    first, second = run_info(first), run_info(second)
    one, other = first.session, second.session
    shown = ("validation", "test")
    rows = first.row(), second.row()
    names = [name for name in {**rows[0], **rows[1]} if name.startswith(("leaderboard", *shown))]
    folds = [run.scores.get("folds", []) for run in (first, second)]
    difference = None
    if len(folds[0]) == len(folds[1]) > 1:
        difference = _resampled(np.subtract(folds[1], folds[0]), np.mean, f"{len(folds[0])} folds")
    return Comparison(
        arguments=_different(one.get("args", {}), other.get("args", {})),
        versions=_different(_versions(one), _versions(other)),
        code=_code(first, second),
        scores={name: (rows[0].get(name), rows[1].get(name)) for name in names},
        difference=difference,
    )


def paired_bootstrap(
    target: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    metric: Callable[[Any, Any], float],
) -> Difference:
    """How much better the second predictions are, and within what, by resampling the rows.

    >>> target = np.arange(200) % 2
    >>> better = paired_bootstrap(target, 1 - target, target, lambda y, p: float((y == p).mean()))
    >>> better.value, better.beyond_noise
    (1.0, True)

    Both are resampled together, 2,000 times, so that rows which are hard for both cancel out.

    Args:
        metric: `metric(target, prediction)`, as in scikit-learn.

    Raises:
        ValueError: Different numbers of rows.
    """
    arrays = [np.asarray(array) for array in (target, first, second)]
    lengths = {len(array) for array in arrays}
    if len(lengths) > 1:
        raise ValueError(f"target and predictions have {sorted(lengths)} rows; expected the same")
    y, one, other = arrays

    def gain(rows: Any) -> float:
        return metric(y[rows], other[rows]) - metric(y[rows], one[rows])

    return _resampled(np.arange(len(y)), gain, f"{len(y)} rows")


def _resampled(values: Any, statistic: Callable[[Any], Any], by: str) -> Difference:
    generator = np.random.default_rng(_SEED)
    count = len(values)
    samples = tqdm(range(_SAMPLES), "bootstrap", leave=False, disable=None)
    drawn = [statistic(values[generator.integers(0, count, count)]) for _ in samples]
    low, high = (float(value) for value in np.quantile(drawn, [0.025, 0.975]))
    return Difference(float(statistic(values)), (low, high), by)


def _different(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = {**one, **other}
    pairs = {name: (one.get(name), other.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _versions(session: dict[str, Any]) -> dict[str, Any]:
    return {"python": session.get("python"), **session.get("packages", {})}


def _code(first: RunInfo, second: RunInfo) -> str:
    gits = [run.session.get("git") or {} for run in (first, second)]
    commits = [str(git.get("commit")) for git in gits]
    if not all(re.fullmatch("[0-9a-f]{7,64}", commit) for commit in commits):
        return "the commit of one is not known"
    diffs = [
        run.path / str(git["diff"])
        for run, git in zip((first, second), gits, strict=True)
        if git.get("diff")
    ]
    same = commits[0] == commits[1]
    if same and len(diffs) == 2 and len({_content(path) for path in diffs}) == 1:
        return "the same commit, with the same changes"
    notes = [f"changed after its commit: {path}" for path in diffs]
    return "\n".join(["the same commit" if same else _diff_stat(*commits), *notes])


def _content(path: Path) -> bytes | Path:
    try:
        return path.read_bytes()
    except OSError:
        return path


def _diff_stat(one: str, other: str) -> str:
    for directory in (Path.cwd(), program_directory()):
        command = ["git", "-C", str(directory), "diff", "--stat", one, other, "--"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, errors="replace")
        except OSError:  # no git here
            break
        if found.returncode == 0:
            return found.stdout.rstrip() or "the same files"
    return f"{one[:8]} and {other[:8]}, which are not in the repository here"
