"""The runs in a log directory, as their files tell them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

from batteries._files import PathLike
from batteries._foreign import is_number
from batteries._rundir.history import NAME as METRICS
from batteries._rundir.history import read_history
from batteries._rundir.names import CHECKPOINTS, is_diff
from batteries._rundir.record import NAME, glance, read_record, state_of
from batteries._rundir.scores import NAME as SCORES
from batteries._rundir.scores import read_scores

_DEPTH = 4  # directories below the log directory in which runs are looked for
_LONG = 500  # letters of a problem
_FOREIGN = (ValueError, OSError, OverflowError, MemoryError)  # what files of others may raise


@dataclass(frozen=True)
class Stage:
    """The scores of the epochs of one stage, which has a directory of checkpoints.

    >>> rows = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.4}, {"epoch": 3, "loss": None}]
    >>> Stage("", Path("checkpoints"), "loss", True, rows).best
    {'epoch': 2, 'loss': 0.4}

    Attributes:
        name: Of the directory, "" where there is only one.
        rows: `{"epoch": 1, "loss": 0.5, ...}`, with None for what is not finite.
    """

    name: str
    path: Path
    metric: str
    minimization: bool
    rows: list[dict[str, Any]]

    @cached_property
    def best(self) -> dict[str, Any] | None:
        """The row of the best epoch; of equal ones the earliest."""
        scored: list[tuple[Any, dict[str, Any]]] = [
            (row.get(self.metric), row) for row in self.rows
        ]
        finite = [pair for pair in scored if is_number(pair[0])]
        choose: Any = min if self.minimization else max
        best: dict[str, Any] | None = choose(finite, key=itemgetter(0), default=(None, None))[1]
        return best


@dataclass(frozen=True)
class RunInfo:
    """What the files of a run say.

    >>> RunInfo("001", Path("runs/001")).state
    'unknown'

    Attributes:
        name: Its directory, as seen from the log directory.
        record: What is in `run.json`.
        scores: What `record_scores` wrote.
        problems: Files that could not be read, and why.
    """

    name: str
    path: Path
    record: dict[str, Any] = field(default_factory=dict)
    state: str = "unknown"
    stages: list[Stage] = field(default_factory=list)
    scores: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def session(self) -> dict[str, Any]:
        """The record of its last start."""
        sessions = self.record.get("sessions")
        return dict(sessions[-1]) if sessions else {}

    @property
    def commit(self) -> str:
        """The first letters of the commit, with a * where something was changed."""
        git = self.session.get("git") or {}
        return str(git.get("commit", ""))[:8] + ("*" if git.get("dirty") else "")

    @property
    def diff(self) -> Path | None:
        """Where the changes after the commit of its last start are recorded, if there were some."""
        # By its own name only: a record may come from elsewhere, and must not ask for other files.
        name = str((self.session.get("git") or {}).get("diff"))
        return self.path / name if is_diff(name) else None

    @property
    def seconds(self) -> float | None:
        """How long all its starts took together, as far as is known."""
        spans = [_span(session) for session in self.record.get("sessions", [])]
        known = [span for span in spans if span is not None]
        return sum(known) if known else None

    @property
    def epochs(self) -> int:
        """Of all stages."""
        return sum(len(stage.rows) for stage in self.stages)

    @cached_property
    def best_stage(self) -> Stage | None:
        """The stage with the best score, among those with the metric of the last one."""
        scored = [stage for stage in self.stages if stage.best is not None]
        if not scored:
            return None
        last = scored[-1]
        sign = 1 if last.minimization else -1
        alike = [stage for stage in scored if stage.metric == last.metric]
        return min(alike, key=lambda stage: sign * (stage.best or {})[last.metric])

    @property
    def validation(self) -> float | None:
        """The score that the run was told, else that of the best epoch."""
        told = self.scores.get("validation")
        if told is not None:
            return float(told)
        stage = self.best_stage
        return float((stage.best or {})[stage.metric]) if stage else None

    def row(self) -> dict[str, Any]:
        """The run as a line of a table, of plain values."""
        stage = self.best_stage
        boards: dict[str, float] = self.scores.get("leaderboard", {})
        test, validation = self.scores.get("test"), self.validation
        return {
            "run": self.name,
            "commit": self.commit,
            "stage": stage.name if stage else "",
            "epochs": self.epochs,
            "metric": stage.metric if stage else "",
            "validation": validation,
            "epoch": (stage.best or {}).get("epoch") if stage else None,
            "test": test,
            **{f"leaderboard.{name}": score for name, score in boards.items()},
            "test - validation": _gap(test, validation),
            **{f"{name} - validation": _gap(score, validation) for name, score in boards.items()},
            "started": str(self.session.get("started") or ""),
            "seconds": self.seconds,
            "state": self.state,
        }


def read_runs(logdir: PathLike) -> list[RunInfo]:
    """The runs in a directory and those below it, in the order of their names.

    >>> read_runs(".")
    []

    A run is a directory with a `run.json` or scores, or that of a `CheckpointManager`; links to
    directories are not followed. What cannot be read is told in the run's `problems`.

    Raises:
        NotADirectoryError: There is no such directory.
    """
    root = Path(logdir)
    if not root.is_dir():
        raise NotADirectoryError(f"there is no directory {root}")
    paths = list(_run_paths(root))
    for path in paths:
        glance(path)
    found = [
        read_run(path, path.name if path == root else path.relative_to(root).as_posix())
        for path in paths
    ]
    return sorted(found, key=lambda run: _natural(run.name))


def best_first(runs: Sequence[RunInfo | PathLike]) -> list[RunInfo]:
    """Runs in the order of their validation scores, the best first.

    >>> loss = [Stage("", Path(), "loss", True, [{"epoch": 1, "loss": x}]) for x in (0.5, 0.4)]
    >>> runs = [RunInfo(str(i), Path(), stages=[stage]) for i, stage in enumerate(loss)]
    >>> [run.name for run in best_first(runs)]
    ['1', '0']

    Whether lower is better is what the run's `metrics.json` says. Runs of different metrics cannot
    be held against each other: the metric with the most runs comes first. Runs without a score, or
    of which nothing says the direction, come last, in the order in which they were.
    """
    groups: dict[tuple[str, bool], list[RunInfo]] = {}
    infos = [run_info(run) for run in runs]
    for run in infos:
        stage = run.best_stage
        if stage is not None:
            groups.setdefault((stage.metric, stage.minimization), []).append(run)
    ranked = [
        run
        for (_, minimization), alike in sorted(groups.items(), key=lambda group: -len(group[1]))
        for run in sorted(alike, key=lambda run: (1 if minimization else -1) * _score(run))
    ]
    return ranked + [run for run in infos if run.best_stage is None]


def _score(run: RunInfo) -> float:
    assert run.validation is not None, "its best stage has one"
    return run.validation


def find_run(run: PathLike, logdir: PathLike = ".") -> RunInfo:
    """A run by its path, or by its name in a log directory.

    >>> find_run("runs/digits/007")
    Traceback (most recent call last):
    LookupError: there is no run runs/digits/007, and no runs are in .

    Raises:
        LookupError: There is none; with the nearest names.
    """
    for path in (Path(run), Path(logdir, run)):
        if path.is_dir() and path in _run_paths(path):
            return read_run(path)
    name, above = str(run), Path(run).parent
    places = [Path(logdir), *([above] if above.is_dir() and above != Path() else [])]
    paths = {path: path.relative_to(place) for place in places for path in _run_paths(place)}
    likeness = {  # to its path, or to its name in the log directory
        path.as_posix(): max(_likeness(name, path.as_posix()), _likeness(name, inside.as_posix()))
        for path, inside in paths.items()
    }
    near = sorted(likeness, key=lambda path: -likeness[path])[:3]
    hint = f"; the nearest: {', '.join(near)}" if near else f", and no runs are in {logdir}"
    raise LookupError(f"there is no run {run}{hint}")


def run_info(run: RunInfo | PathLike) -> RunInfo:
    """What the files of a run say, unless that is what was given."""
    return run if isinstance(run, RunInfo) else find_run(run)


def _likeness(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, name, other).ratio()


def read_run(path: PathLike, name: str | None = None) -> RunInfo:
    """What the files of one run say.

    >>> read_run("runs/digits/001").stages
    []
    """
    path = Path(path)
    problems: list[str] = []
    record, scores, stages, state = {}, {}, [], "unknown"
    with _telling(path / NAME, problems):
        record = read_record(path) or {}
        state = state_of(path, record) if record else "unknown"
    with _telling(path / SCORES, problems):
        scores = read_scores(path)
    for file in sorted(_metrics_files(path), key=_changed):
        with _telling(file, problems):
            stages.append(_read_stage(file, path))
    if problems and state == "unknown":
        state = "unreadable"
    return RunInfo(name or str(path), path, record, state, stages, scores, problems)


@contextmanager
def _telling(file: Path, problems: list[str]) -> Iterator[None]:
    try:
        yield
    except _FOREIGN as error:
        text = str(error) if str(file) in str(error) else f"{file}: {error}"
        problems.append(text[:_LONG])


def _run_paths(root: Path, depth: int = _DEPTH) -> Iterator[Path]:
    try:
        with os.scandir(root) as entries:
            inside = list(entries)
    except FileNotFoundError:  # removed meanwhile
        return
    except PermissionError:  # told as the problem of a run
        yield root
        return
    names = {entry.name for entry in inside}
    if NAME in names or SCORES in names:
        yield root
    elif METRICS in names:
        yield root.parent if root.name == CHECKPOINTS and depth < _DEPTH else root
    elif depth:
        for entry in inside:
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield from _run_paths(Path(entry.path), depth - 1)


def _metrics_files(path: Path, depth: int = 2) -> Iterator[Path]:
    try:
        with os.scandir(path) as entries:
            inside = list(entries)
    except OSError:
        return
    for entry in inside:
        if entry.name == METRICS:
            yield Path(entry.path)
        elif depth and entry.is_dir(follow_symlinks=False):
            yield from _metrics_files(Path(entry.path), depth - 1)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # told when it is read
        return 0.0


def _read_stage(file: Path, run: Path) -> Stage:
    history = read_history(file, inside=run)
    parts = [part for part in file.parent.relative_to(run).parts if part != CHECKPOINTS]
    own = (history.metric, history.minimization, history.rows)
    return Stage("/".join(parts), file.parent, *own)


def _gap(score: float | None, validation: float | None) -> float | None:
    return None if score is None or validation is None else score - validation


def _span(session: dict[str, Any]) -> float | None:
    try:
        started = datetime.fromisoformat(session["started"])
        if session["stopped"] is None and session["state"] == "running":
            return (datetime.now(timezone.utc) - started).total_seconds()
        return (datetime.fromisoformat(session["stopped"]) - started).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Numbers by their value."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in name.split("/")]
