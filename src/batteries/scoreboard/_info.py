"""Read the files of one run."""

from __future__ import annotations

import itertools
import os
import re
import stat
import statistics
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from batteries._arguments import leaves
from batteries._files import PathLike, Place, check_inside, walk
from batteries._foreign import brief, is_epoch, open_regular
from batteries._rundir.alive import state_of
from batteries._rundir.history import NAME as METRICS
from batteries._rundir.history import best_row, read_history, stage_of
from batteries._rundir.names import LOG, checkpoint_name, is_diff
from batteries._rundir.record import NAME, files_of, read_record
from batteries._rundir.scores import NAME as SCORES
from batteries._rundir.scores import read_scores
from batteries.scoreboard._series import Logged, Metric, Series, read_logged

_LONG = 500  # letters of a problem
_FILES = 100_000  # at most, whose sizes are added up
_ARGUMENTS = 1000
_FOREIGN = (ValueError, OSError, OverflowError, MemoryError)  # raised by damaged files
_FOLD = re.compile(r"(?i)(^|/)fold[_-]?\d+(?=/|$)")


@dataclass(frozen=True)
class Stage:
    """The scores of all epochs of one stage. A stage has a directory of checkpoints.

    >>> rows = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.4}, {"epoch": 3, "loss": None}]
    >>> Stage("", Path("checkpoints"), "loss", True, rows).best
    {'epoch': 2, 'loss': 0.4}

    Attributes:
        name: The directory inside the run: "warmup". It is "" for the run's own directory and its
            "checkpoints".
        path: The directory.
        metric: The metric of the scores.
        minimization: Whether lower is better.
        rows: `{"epoch": 1, "loss": 0.5, ...}` for each epoch. None stands for values that are not
            finite. If the directory was removed, only the row of the best epoch is known.
        epochs: The number of epochs.
    """

    name: str
    path: Path
    metric: str
    minimization: bool
    rows: list[dict[str, Any]]
    epochs: int = 0

    @cached_property
    def best(self) -> dict[str, Any] | None:
        """The row of the best epoch, the earliest of equal ones. None without a finite score."""
        return best_row(self.metric, self.minimization, self.rows)


class Checkpoint(NamedTuple):
    """The file of an epoch.

    >>> Checkpoint("", 3, 0.9, Path("exp_3.pth"), 1024).bytes
    1024

    Attributes:
        stage: The name of the stage.
        epoch: The epoch.
        score: The score of the epoch; None if it is not finite or not known.
        path: The file, or the directory of a sharded checkpoint.
        bytes: The size in bytes.
    """

    stage: str
    epoch: int
    score: float | None
    path: Path
    bytes: int


class Validation(NamedTuple):
    """The validation score of a run, and where it comes from.

    >>> Validation(0.91, "mean of 5 folds", 0.01).of
    'mean of 5 folds'

    Attributes:
        value: The score.
        of: "best epoch"; "mean of 5 folds" (their recorded scores, or their best epochs);
            "recorded" (by `record_scores`); or "out-of-fold" (recorded together with folds).
        spread: The standard deviation of the folds; None if there are fewer than two.
        epoch: The best epoch; None if the score is not that of one epoch.
        stage: The stage of the best epoch. For the mean of folds, the name of their stages
            without the fold: "head" for "head/fold0" and "head/fold1".
    """

    value: float
    of: str
    spread: float | None = None
    epoch: int | None = None
    stage: str = ""


@dataclass(frozen=True)
class RunInfo:
    """The information in the files of a run.

    >>> RunInfo("001", Path("runs/001")).state
    'unknown'

    Attributes:
        name: The path of the run, relative to the log directory if `read_runs` has found it.
        path: The directory of the run.
        record: The content of `run.json`.
        state: "running", "finished", "stopped", "failed" or "killed". Without a record it is
            "unknown", or "unreadable" if a file cannot be read.
        stages: The stages of the run, each with a directory of checkpoints.
        scores: The scores of `record_scores`.
        problems: Texts about files that could not be read, with the reason.
    """

    name: str
    path: Path = Place()  # type: ignore[assignment]  # noqa: RUF009
    record: dict[str, Any] = field(default_factory=dict)
    state: str = "unknown"
    stages: list[Stage] = field(default_factory=list)
    scores: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def session(self) -> dict[str, Any]:
        """The record of the last start."""
        sessions = self.record.get("sessions")
        return dict(sessions[-1]) if sessions else {}

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the last start, with joined names ("model.width"). Lists are texts."""
        some = itertools.islice(leaves(self.session.get("args") or {}), _ARGUMENTS)
        return {
            name[:_LONG]: each
            if each is None or isinstance(each, bool | int | float | str)
            else repr(each)[:_LONG]
            for name, each in some
        }

    @property
    def commit(self) -> str:
        """The first 8 characters of the commit, and a * if files were changed after it."""
        git = self.session.get("git") or {}
        return str(git.get("commit", ""))[:8] + ("*" if git.get("dirty") else "")

    @property
    def diff(self) -> Path | None:
        """The file of the changes after the commit of the last start, if there were some."""
        # Only names of such files are allowed: a foreign record must not name other files.
        name = str((self.session.get("git") or {}).get("diff"))
        return self.path / name if is_diff(name) else None

    @property
    def seconds(self) -> float | None:
        """The sum of the known durations of all starts, in seconds. None if none is known."""
        spans = [_span(session) for session in self.record.get("sessions", [])]
        known = [span for span in spans if span is not None]
        return sum(known) if known else None

    @property
    def epochs(self) -> int:
        """The number of epochs of all stages."""
        return sum(stage.epochs or len(stage.rows) for stage in self.stages)

    @cached_property
    def bytes(self) -> int:
        """The size of all files in the directory. Files with several names count once."""
        return size_of(self.path.resolve())

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """A summary of each logged metric, by its name."""
        logged_by(self)
        found: dict[str, Metric] = vars(self)["metrics"]
        return found

    def series(self) -> dict[str, Series]:
        """All logged values, by the names of metrics. Each call reads the files again."""
        return logged_by(self)[0]

    def checkpoints(self) -> list[Checkpoint]:
        """The files of epochs, with their sizes."""
        return [each for stage in self.stages for each in _checkpoints(self.path, stage)]

    def log(self, most: int) -> tuple[str, int]:
        """The last `most` bytes of `log.txt` as text, and the number of bytes before them.

        ("", 0) if there is no log, or if it cannot be read; then `problems` says why.
        """
        with _telling(self.path / LOG, self.problems):
            return read_text(self.path / LOG, most, tail=True)
        return "", 0

    # ---------------------------------------------------------------- scores

    @cached_property
    def best_stage(self) -> Stage | None:
        """The stage with the best score, among the stages with the metric of the last stage."""
        scored = [stage for stage in self.stages if stage.best is not None]
        if not scored:
            return None
        last = scored[-1]
        sign = 1 if last.minimization else -1
        alike = [stage for stage in scored if stage.metric == last.metric]
        return min(alike, key=lambda stage: sign * (stage.best or {})[last.metric])

    @property
    def _told(self) -> dict[str, Any]:
        """What is recorded about the validation score. Empty if the score is a checkpoint's."""
        recorded = self.scores.keys() & {"validation", "folds"}
        return self.scores if recorded or self.best_stage is None else {}

    @property
    def metric(self) -> str:
        """The metric of the validation score; "" if it is not known."""
        stage = self.best_stage
        return str(self._told.get("metric") or (stage.metric if stage else ""))

    @property
    def minimization(self) -> bool | None:
        """Whether lower is better; None if it is not known."""
        told: bool | None = self._told.get("minimization")
        stage = self.best_stage
        # The direction of a checkpoint's loss is not that of a recorded AUC.
        same = stage is not None and stage.metric == self.metric
        return stage.minimization if stage and same and told is None else told

    @cached_property
    def validated(self) -> Validation | None:
        """The recorded score, else the mean of the folds, else the score of the best epoch."""
        told, folds = self.scores.get("validation"), self.scores.get("folds") or []
        spread = statistics.stdev(folds) if len(folds) > 1 else None
        if told is not None:
            return Validation(float(told), "out-of-fold" if folds else "recorded", spread)
        if folds:
            return Validation(statistics.fmean(folds), f"mean of {len(folds)} folds", spread)
        best = self.best_stage
        if best is None:
            return None
        groups: dict[tuple[str, bool], list[Stage]] = {}
        for stage in self.stages:
            if stage.best is not None and stage.metric == best.metric:
                name, folds_in_name = _FOLD.subn("", stage.name)
                groups.setdefault((name, bool(folds_in_name)), []).append(stage)
        found = [_of_stages(name, stages) for (name, _), stages in groups.items()]
        choose: Any = min if best.minimization else max
        chosen: Validation = choose(found, key=lambda each: each.value)
        return chosen

    @property
    def validation(self) -> float | None:
        """The value of `validated`."""
        return self.validated and self.validated.value

    def row(self) -> dict[str, Any]:
        """The run as a row of a table, with plain values."""
        boards: dict[str, float] = self.scores.get("leaderboard", {})
        test, told = self.scores.get("test"), self.validated
        value = told.value if told else None
        return {
            "run": self.name,
            "commit": self.commit,
            "stage": told.stage if told else "",
            "epochs": self.epochs,
            "metric": self.metric,
            "validation": value,
            "validation of": told.of if told else "",
            "spread": told.spread if told else None,
            "epoch": told.epoch if told else None,
            "test": test,
            **{f"leaderboard.{name}": score for name, score in boards.items()},
            "test - validation": None,
            **{
                f"{name} - validation": None if value is None else score - value
                for name, score in other_scores(self.scores)
            },
            "started": str(self.session.get("started") or ""),
            "stopped": str(self.session.get("stopped") or ""),
            "seconds": self.seconds,
            "bytes": self.bytes,
            "state": self.state,
            "why": str(self.session.get("why") or "")[:_LONG],
        }


def read_run(path: PathLike, name: str | None = None) -> RunInfo:
    """Read the files of one run.

    >>> with start_run("runs/digits") as run:
    ...     pass
    >>> read_run(run).state
    'finished'
    >>> read_run("runs/nothing").problems
    ['there is no directory runs/nothing']

    It raises no error for files that are missing or damaged. `problems` has the damaged files, and
    a missing directory.

    Args:
        path: The directory of the run.
        name: The `name` of the result. Default: the path.
    """
    path = Path(path)
    problems = [] if path.is_dir() else [f"there is no directory {path}"]
    record, scores, stages, state = {}, {}, [], "unknown"
    with _telling(path / NAME, problems):
        record = read_record(path) or {}
        state = state_of(path, record) if record else "unknown"
    with _telling(path / SCORES, problems):
        scores = read_scores(path)
    left_out = []
    for file in sorted(files_of(path, METRICS), key=_changed):
        with _telling(file, problems):
            own = read_history(file, inside=path)
            stages.append(Stage(stage_of(file, path), file.parent, *own[:3], len(own.rows)))
            if own.foreign:
                told = f"{file}: {own.foreign:,} rows have values that no CheckpointManager writes"
                left_out.append(f"{told}, which are left out")
    known = {stage.name for stage in stages}
    stages = [s for s in _recorded(path, record, problems) if s.name not in known] + stages
    if problems and state == "unknown":
        state = "unreadable"
    return RunInfo(name or str(path), path, record, state, stages, scores, problems + left_out)


def logged_by(run: RunInfo) -> Logged:
    """All that a run has logged. The call also sets its `metrics` and adds to its `problems`."""
    found = read_logged(run.path, run.problems)
    run.problems[:] = dict.fromkeys(text[:_LONG] for text in run.problems)  # each once
    vars(run)["metrics"] = {name: series.metric() for name, series in found[0].items()}
    return found


def folds_of(run: RunInfo) -> list[float]:
    """The scores of the folds: those of `record_scores`, or of each fold's best epoch."""
    told: list[float] = run.scores.get("folds") or []
    if told or run.validated is None or not run.validated.of.startswith("mean of"):
        return told
    own = run.validated.stage
    stages = [s for s in run.stages if _FOLD.search(s.name) and _FOLD.sub("", s.name) == own]
    stages.sort(key=lambda stage: [int(n) for n in re.findall(r"\d+", stage.name)])
    return [stage.best[stage.metric] for stage in stages if stage.best]


def read_text(path: Path, most: int, tail: bool = False) -> tuple[str, int]:
    """The beginning or the end of a file, and the number of other bytes; "" without a file."""
    if not os.path.lexists(path):
        return "", 0
    with open_regular(path, inside=path.parent) as file:
        size = file.seek(0, 2)
        file.seek(max(size - most, 0) if tail else 0)
        data = file.read(most)
    return data.decode(errors="surrogateescape"), size - len(data)


# ---------------------------------------------------------------- parts of a run


@contextmanager
def _telling(file: Path, problems: list[str]) -> Iterator[None]:
    try:
        yield
    except _FOREIGN as error:
        text = str(error) if str(file) in str(error) else f"{file}: {error}"
        problems += [text[:_LONG]] if text[:_LONG] not in problems else []


def _recorded(run: Path, record: dict[str, Any], problems: list[str]) -> Iterator[Stage]:
    """The scores of stages in the record, in case the checkpoints were removed."""
    stages: dict[str, dict[str, Any]] = {}
    for session in record.get("sessions", []):
        stages |= {told.get("stage", ""): told for told in session.get("stages", [])}
    needed = {"metric", "minimization", "score", "epoch"}
    for name, told in stages.items():
        leads_out = Path(name).is_absolute() or ".." in Path(name).parts
        if leads_out or not is_epoch(told.get("epoch", 0)):
            problems.append(f"{run / NAME} has an impossible stage: {brief(name)}"[:_LONG])
        elif needed <= told.keys():
            rows = [{"epoch": told["epoch"], told["metric"]: told["score"]}]
            own = (told["metric"], told["minimization"], rows, told.get("epochs", 1))
            yield Stage(name, run / name, *own)


def _of_stages(name: str, stages: list[Stage]) -> Validation:
    scores = [float((stage.best or {})[stage.metric]) for stage in stages]
    if len(stages) == 1:
        epoch = (stages[0].best or {}).get("epoch")
        return Validation(scores[0], "best epoch", None, epoch, stages[0].name)
    spread = statistics.stdev(scores)
    return Validation(statistics.fmean(scores), f"mean of {len(scores)} folds", spread, None, name)


def _checkpoints(run: Path, stage: Stage) -> Iterator[Checkpoint]:
    for row in stage.rows:
        epoch = row["epoch"]
        names = [checkpoint_name(epoch, end) for end in (".pth", ".dcp")]
        names += ["best.pth", "best.dcp"] if row is stage.best else []
        names += ["last.pth", "last.dcp"] if row is stage.rows[-1] else []
        path = next((stage.path / name for name in names if (stage.path / name).exists()), None)
        if path is not None:
            with suppress(PermissionError):  # for a link that leads out of the run
                check_inside(path, run)
                size = size_of(path.resolve())
                yield Checkpoint(stage.name, epoch, row.get(stage.metric), path, size)


def size_of(*paths: Path) -> int:
    """The size of files, and of those in directories. Files with several names count once."""
    below = (Path(at, name) for path in paths for at, _, names in walk(path) for name in names)
    sizes: dict[tuple[int, int], int] = {}
    for file in itertools.islice(itertools.chain(paths, below), _FILES):
        with suppress(OSError):  # removed meanwhile
            found = os.lstat(file)
            if stat.S_ISREG(found.st_mode):
                sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # becomes a problem when it is read
        return 0.0


def other_scores(scores: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The test score and those of leaderboards. A leaderboard named "test" has another name."""
    if "test" in scores:
        yield "test", scores["test"]
    for name, score in scores.get("leaderboard", {}).items():
        yield "leaderboard test" if name == "test" else name, score


def _span(session: dict[str, Any]) -> float | None:
    try:
        started = datetime.fromisoformat(session["started"])
        if session["stopped"] is None and session["state"] == "running":
            return (datetime.now(timezone.utc) - started).total_seconds()
        return (datetime.fromisoformat(session["stopped"]) - started).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None
