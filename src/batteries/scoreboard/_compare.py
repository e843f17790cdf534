"""Compare runs, and find out whether they differ by more than noise."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batteries._digits import shown
from batteries._environment import git, program_directory
from batteries._files import PathLike
from batteries._foreign import read_regular
from batteries.scoreboard._info import RunInfo
from batteries.scoreboard._noise import Difference, by_folds, by_seeds, configuration, decided
from batteries.scoreboard._runs import Runs, run_info, run_infos

_SCORES = ("validation", "test")
_UNFINISHED = ("running", "failed", "stopped", "killed")


@dataclass(frozen=True)
class Comparison:
    """The differences between runs.

    >>> Comparison(["001", "002"], {"lr": (0.1, 0.2)}, {}, "").arguments
    {'lr': (0.1, 0.2)}

    Attributes:
        names: The names of the runs.
        arguments: The arguments that differ: by name, the value of each run or None.
        versions: The versions of packages that differ, in the same form.
        code: The output of `git diff --stat` between the commits of the first run and each other
            run. If there is no output, a text says why.
        scores: The scores, and the last and best value of each logged metric: by name, the number
            of each run or None.
        differences: For each pair of runs, the second's score minus the first's. The noise is that
            of seeds if there are runs with other seeds, else that of folds. A pair has no entry if
            it has neither, if its metrics differ, or if it is in `only_seeds`.
        metric: The metric that is compared; "" if the runs have several, or none.
        minimization: Whether lower is better; None if that is not known.
        only_seeds: The pairs of runs whose arguments differ only in seeds.
        left_out: The number of runs of `among` that would show the noise of seeds, but have not
            finished.
    """

    names: Sequence[str]
    arguments: dict[str, tuple[Any, ...]]
    versions: dict[str, tuple[Any, ...]]
    code: str
    scores: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    differences: Sequence[Difference] = ()
    metric: str = ""
    minimization: bool | None = None
    only_seeds: Sequence[tuple[int, int]] = ()
    left_out: int = 0

    @property
    def difference(self) -> Difference | None:
        """The first of `differences`. Two runs have only one."""
        return self.differences[0] if self.differences else None

    def verdicts(self) -> list[str]:
        """A text for each difference. If there are none, the text says what is needed.

        >>> Comparison(["001", "002"], {}, {}, "").verdicts()[0][:46]
        'whether they differ is not known: this needs s'
        """
        same = [
            f"{self.names[i]} and {self.names[j]} have one configuration (their arguments differ "
            "only in the seed)"
            for i, j in self.only_seeds
        ]
        found = [self.verdict(each) for each in self.differences]
        if not found and not same:
            found = [
                "whether they differ is not known: this needs several runs of each that differ "
                "only in the seed, or the scores of folds (record_scores(run, folds=...)), or the "
                "predictions of each (batteries compare --predictions); and the same metric"
            ]
        if self.left_out:
            found.append(
                f"{self.left_out} unfinished runs of these configurations are left out: name a run "
                "to count it"
            )
        return same + found

    def verdict(self, difference: Difference) -> str:
        """A difference in words, with the kind of noise that it does not include.

        >>> found = Comparison(["001", "002"], {}, {}, "", metric="auc", minimization=False)
        >>> print(found.verdict(Difference(0.02, (0.01, 0.03), "5 folds", (0.90, 0.92))))
        auc of 001 0.9000, of 002 0.9200: difference +0.0200, 95 % +0.0100 to +0.0300:
        002 is better, beyond the noise of 5 folds
        (this does not include the noise of seeds, which needs more runs of both)
        """
        first, second = (self.names[place] for place in difference.pair)
        value, low, high = shown([difference.value, *difference.interval], sign="+")
        is_known = math.isfinite(difference.interval[0])
        text = f"difference {value}" + (f", 95 % {low} to {high}" if is_known else "")
        if difference.scores:
            one, other = shown(difference.scores)
            over = " (mean over seeds)" if difference.by.endswith("seeds") else ""
            text = f"{self.metric or 'score'}{over} of {first} {one}, of {second} {other}: {text}"
        if difference.of > 1:
            text += f" (of {difference.of} comparisons, by Holm)"
        by = difference.by
        if not is_known:
            found = f"{by} have no spread, so their noise is not known"
        elif not difference.beyond_noise:
            found = f"the data cannot tell: not beyond the noise of {by}"
            if difference.needed:
                unit = by.rpartition(" ")[2]
                each = " of each" if unit == "seeds" else ""
                found += f"; about {difference.needed:,} {unit}{each} would show such a difference"
        elif self.minimization is None:
            found = f"beyond the noise of {by}; whether lower is better is not known"
        else:
            better = second if (difference.value < 0) == self.minimization else first
            found = f"{better} is better, beyond the noise of {by}"
        text += f":\n{found}"
        if not by.endswith("seeds"):
            text += "\n(this does not include the noise of seeds, which needs more runs of both)"
        return text


def compare(*runs: RunInfo | PathLike, among: Sequence[RunInfo | PathLike] = ()) -> Comparison:
    """Compare runs, and say for each pair of them whether it differs by more than noise.

    >>> compare(RunInfo("1", Path("1")), RunInfo("2", Path("2"))).code
    'the commit of one run is not known'

    Runs have one configuration if their arguments differ only in the seed. The interval of two
    configurations with several seeds is Welch's. If both have the same five or more seeds, it is
    the interval of the paired differences. With several comparisons, Holm's procedure makes
    the intervals wider: all verdicts "beyond noise" are right with a probability of at least 95 %.

    Args:
        runs: Two or more runs, or paths, names or numbers as for `find_run`, such as "7".
        among: Other runs. Those with the configuration of one of the runs show the noise of seeds.
            Those that have not finished are left out.

    Raises:
        ValueError: Fewer than two runs.
        TypeError: `among` is one path.
        LookupError: There is no such run.
        ModuleNotFoundError: scipy is not installed. Noise of seeds or folds needs it.
    """
    if len(runs) < 2:
        raise ValueError(f"compare needs two or more runs; found {len(runs)}: compare(*runs)")
    infos, others = [run_info(run) for run in runs], run_infos(among, "among")
    names, sessions = _names(infos), [info.session for info in infos]
    rows = Runs(infos).rows()
    scores = {
        name: tuple(row[name] for row in rows)
        for name in rows[0]
        if name in _SCORES or name.startswith("leaderboard.") or name.endswith((".last", ".best"))
    }
    pairs = list(itertools.combinations(range(len(infos)), 2))
    kinds = [configuration(info) for info in infos]
    named = {info.path.resolve() for info in infos}
    left_out = {
        run.path.resolve()
        for run in others
        if run.state in _UNFINISHED and configuration(run) in kinds
    } - named
    others = [run for run in others if run.path.resolve() not in left_out]
    same = [(i, j) for i, j in pairs if kinds[i] == kinds[j] and kinds[i][0]]
    evidence = [
        by_seeds((i, j), infos[i], infos[j], [*infos, *others])
        or by_folds((i, j), infos[i], infos[j])
        for i, j in pairs
        if (i, j) not in same and _one_metric(infos[i], infos[j])
    ]
    metrics = {(info.metric, info.minimization) for info in infos}
    metric, lower = metrics.pop() if len(metrics) == 1 else ("", None)
    return Comparison(
        names,
        _different([info.arguments for info in infos]),
        _different([_versions(session) for session in sessions]),
        _codes(infos, names),
        {name: values for name, values in scores.items() if set(values) != {None}},
        decided([each for each in evidence if each is not None]),
        metric,
        lower,
        same,
        len(left_out),
    )


def _one_metric(first: RunInfo, second: RunInfo) -> bool:
    return first.metric == second.metric or not (first.metric and second.metric)


def _names(runs: Sequence[RunInfo]) -> list[str]:
    """For each run, the last parts of its name: as many as are needed to tell the runs apart."""
    parts = [Path(run.name).parts for run in runs]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{run.name} ({number})" for number, run in enumerate(runs, start=1)]


def _different(tables: Sequence[dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
    names = dict.fromkeys(name for table in tables for name in table)
    found = {name: tuple(table.get(name) for table in tables) for name in names}
    return {n: values for n, values in found.items() if any(v != values[0] for v in values)}


def _versions(session: dict[str, Any]) -> dict[str, Any]:
    return {"python": session.get("python"), **(session.get("packages") or {})}


def _codes(runs: Sequence[RunInfo], names: Sequence[str]) -> str:
    found = [_code(runs[0], other) for other in runs[1:]]
    if len(found) == 1:
        return found[0]
    pairs = zip(names[1:], found, strict=True)
    return "\n".join(f"{names[0]} and {name}: {text}" for name, text in pairs)


def _code(first: RunInfo, second: RunInfo) -> str:
    gits = [run.session.get("git") or {} for run in (first, second)]
    commits = [str(git.get("commit")) for git in gits]
    if not all(re.fullmatch("[0-9a-f]{7,64}", commit) for commit in commits):
        return "the commit of one run is not known"
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
        # These options keep git from running programs that the repository has configured.
        plain = ("--no-ext-diff", "--no-textconv")
        found = git(directory, "diff", "--stat", *plain, one, other, "--")
        if found is not None:
            return found.decode(errors="replace").rstrip() or "the same files"
    return f"{one[:8]} and {other[:8]}, which are not in this repository"
