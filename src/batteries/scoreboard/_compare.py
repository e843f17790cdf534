"""Two runs side by side, and whether their difference is more than noise."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from batteries._digits import shown
from batteries._environment import program_directory
from batteries._files import PathLike
from batteries._foreign import read_regular
from batteries._optional import import_optional
from batteries.scoreboard._info import RunInfo
from batteries.scoreboard._runs import run_info

_SAMPLES = 2000
_SEED = 42
_SEEDS = re.compile(r"(?i)(?:^|_)seeds?(?:_|$)|^random_state$")  # names of such arguments


class Difference(NamedTuple):
    """A difference of two scores, and its interval.

    >>> Difference(0.02, (0.01, 0.03), "5 folds").beyond_noise
    True
    """

    value: float
    interval: tuple[float, float]  # with 95 % probability
    by: str  # whose noise it is: "5 folds", "300 rows", "3 and 4 seeds"

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
        difference: Of the second from the first, by runs of both with other seeds where there are
            some, else by their folds; None without either.
        minimization: Whether lower is better; None where nothing says it.
        only_seeds: Whether their arguments are the same, but for seeds.
    """

    arguments: dict[str, tuple[Any, Any]]
    versions: dict[str, tuple[Any, Any]]
    code: str
    scores: dict[str, tuple[Any, Any]]
    difference: Difference | None
    minimization: bool | None = None
    only_seeds: bool = False

    def verdict(self, first: str, second: str, difference: Difference | None = None) -> str:
        """What a difference says, and of what noise it does not speak.

        >>> found = Comparison({}, {}, "", {}, Difference(0.02, (0.01, 0.03), "5 folds"), False)
        >>> print(found.verdict("001", "002"))
        difference +0.0200, 95 % +0.0100 to +0.0300: 002 is better, beyond the noise of 5 folds
        (what other seeds would give is not in it: that takes more runs of both)

        Args:
            first: What the runs are called.
            difference: Another one than that of the comparison, such as `paired_bootstrap`'s.
        """
        difference = difference or self.difference
        if difference is None:
            return "whether they differ is not known: it takes folds, predictions or more seeds"
        value, low, high = shown([difference.value, *difference.interval], sign="+")
        if self.only_seeds:
            return (
                f"difference {value}, 95 % {low} to {high} by {difference.by}: two models of one "
                "configuration\n(their arguments are the same but for the seed)"
            )
        if not difference.beyond_noise:
            found = f"not beyond the noise of {difference.by}"
        elif self.minimization is None:
            found = f"beyond the noise of {difference.by}; nothing says whether lower is better"
        else:
            better = second if (difference.value < 0) == self.minimization else first
            found = f"{better} is better, beyond the noise of {difference.by}"
        text = f"difference {value}, 95 % {low} to {high}: {found}"
        if not difference.by.endswith("seeds"):
            text += "\n(what other seeds would give is not in it: that takes more runs of both)"
        return text


def compare(
    first: RunInfo | PathLike, second: RunInfo | PathLike, among: Sequence[RunInfo | PathLike] = ()
) -> Comparison:
    """What differs between two runs.

    >>> compare(RunInfo("1", Path("1")), RunInfo("2", Path("2"))).code
    'the commit of one is not known'

    Args:
        among: Runs, of which those with the arguments of one of the two, but for the seed, tell the
            noise of seeds.
    """
    first, second = run_info(first), run_info(second)
    one, other = first.session, second.session
    shown = ("validation", "test")
    rows = first.row(), second.row()
    names = [name for name in {**rows[0], **rows[1]} if name.startswith(("leaderboard", *shown))]
    folds = [run.scores.get("folds", []) for run in (first, second)]
    difference = None
    if len(folds[0]) == len(folds[1]) > 1:
        difference = _of_folds(np.subtract(folds[1], folds[0]))
    by_seeds = _by_seeds(first, second, among)
    stages = [run.best_stage for run in (first, second)]
    directions = {stage.minimization for stage in stages if stage}
    return Comparison(
        arguments=_different(one.get("args") or {}, other.get("args") or {}),
        versions=_different(_versions(one), _versions(other)),
        code=_code(first, second),
        scores={name: (rows[0].get(name), rows[1].get(name)) for name in names},
        difference=by_seeds or difference,
        minimization=directions.pop() if len(directions) == 1 else None,
        only_seeds=bool(one.get("args")) and _configuration(first) == _configuration(second),
    )


def _configuration(run: RunInfo) -> Any:
    """What a run is one of several of: all but its seed."""
    stage = run.best_stage
    return _without_seed(run.session.get("args") or {}), stage and stage.metric


def _without_seed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _without_seed(each) for name, each in value.items() if not _SEEDS.search(name)}


def _by_seeds(
    first: RunInfo, second: RunInfo, among: Sequence[RunInfo | PathLike]
) -> Difference | None:
    """Welch's interval of the difference of two configurations, of which several runs are there."""
    kinds = [_configuration(run) for run in (first, second)]
    if kinds[0] == kinds[1] or not all(arguments for arguments, _ in kinds):
        return None
    known = {run.path.resolve(): run for run in map(run_info, (*among, first, second))}
    scores = [
        np.array([
            run.validation
            for run in known.values()
            if run.validation is not None and _configuration(run) == kind
        ], dtype=float)
        for kind in kinds
    ]  # fmt: skip
    if min(map(len, scores)) < 2:
        return None
    stats: Any = import_optional("scipy.stats", needs="scipy", for_="compare by seeds")
    value = float(scores[1].mean() - scores[0].mean())
    by = f"{len(scores[0])} and {len(scores[1])} seeds"
    if max(map(np.ptp, scores)) == 0:
        return Difference(value, (value, value), by)
    with_noise = stats.ttest_ind(scores[1], scores[0], equal_var=False).confidence_interval(0.95)
    return Difference(value, (float(with_noise.low), float(with_noise.high)), by)


def _of_folds(gains: Any) -> Difference:
    """Student's interval: a few folds are too few to be resampled."""
    value, by = float(gains.mean()), f"{len(gains)} folds"
    if np.ptp(gains) == 0:
        return Difference(value, (value, value), by)
    stats: Any = import_optional("scipy.stats", needs="scipy", for_="compare by folds")
    low, high = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    return Difference(value, (float(low), float(high)), by)


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
    return {"python": session.get("python"), **(session.get("packages") or {})}


def _code(first: RunInfo, second: RunInfo) -> str:
    gits = [run.session.get("git") or {} for run in (first, second)]
    commits = [str(git.get("commit")) for git in gits]
    if not all(re.fullmatch("[0-9a-f]{7,64}", commit) for commit in commits):
        return "the commit of one is not known"
    diffs = [run.diff for run in (first, second) if run.diff is not None]
    same = commits[0] == commits[1]
    if same and len(diffs) == 2 and len({_content(path) for path in diffs}) == 1:
        return "the same commit, with the same changes"
    notes = [f"changed after its commit: {path}" for path in diffs]
    return "\n".join(["the same commit" if same else _diff_stat(*commits), *notes])


def _content(path: Path) -> bytes | Path:
    try:
        return read_regular(path, inside=path.parent)
    except (OSError, ValueError):
        return path


def _diff_stat(one: str, other: str) -> str:
    for directory in (Path.cwd(), program_directory()):
        # Without what the repository itself may have configured to be run.
        command = ["git", "-C", str(directory), "-c", "core.fsmonitor=false", "diff", "--stat"]
        command += ["--no-ext-diff", "--no-textconv", one, other, "--"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, errors="replace")
        except OSError:  # no git here
            break
        if found.returncode == 0:
            return found.stdout.rstrip() or "the same files"
    return f"{one[:8]} and {other[:8]}, which are not in the repository here"
