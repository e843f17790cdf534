"""Read all runs below a directory, for the command line and the page."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from batteries._arrays import as_names
from batteries._direction import said_direction
from batteries._files import PathLike
from batteries._optional import import_optional
from batteries._rundir.alive import glance
from batteries._rundir.history import NAME as METRICS
from batteries._rundir.names import CHECKPOINTS
from batteries._rundir.record import NAME
from batteries._rundir.scores import NAME as SCORES
from batteries.scoreboard._info import RunInfo, read_run
from batteries.scoreboard._select import grouped, in_order, select

if TYPE_CHECKING:
    from polars import DataFrame

_DEPTH = 4  # directories below the log directory in which runs are looked for


class Runs(Sequence[RunInfo]):
    """The runs below a directory, as tables; `read_runs` makes it.

    >>> with start_run("runs", {"lr": 0.1}) as run, JsonLinesLogger(run) as lines:
    ...     for step, loss in enumerate([0.5, 0.3, 0.4], start=1):
    ...         lines.log_metrics({"valid": {"loss": loss}}, step)
    >>> runs = read_runs("runs", metric_minimization={"loss": True})
    >>> runs.where("lr=0.1", "valid/loss<0.35").table()["valid/loss.best"].to_list()
    [0.3]

    A table has these columns:

    - those of `RunInfo.row`;
    - the arguments, with joined names: "model.width", or "args.test" if "test" is taken;
    - for each logged metric "valid/loss.last", "valid/loss.best" and "valid/loss.best_step". The
      best is None if it is not known whether lower is better.

    The name "valid/loss" without an ending stands for the run's argument of that name. If there is
    none, it stands for the metric's best value, or for its last value if the best is not known, or
    with `which="last"`.

    Args:
        runs: The runs, or their paths.
        metric_minimization: As for `read_runs`.
        which: "last" if a metric's name alone stands for its last value.

    Attributes:
        minimization: Whether lower is better, by the names of metrics. It comes from
            `CheckpointManager`, `record_scores` and `metric_minimization` of `read_runs`. "loss"
            also counts for "valid/loss".

    Raises:
        TypeError: `runs` is one path, or `metric_minimization` is not a mapping of bools.
        LookupError: There is no such run.
    """

    def __init__(
        self,
        runs: Sequence[RunInfo | PathLike],
        metric_minimization: Mapping[str, bool] | None = None,
        which: Literal["last", "best"] = "best",
    ) -> None:
        self._runs = run_infos(runs)
        told = {} if metric_minimization is None else metric_minimization
        if not isinstance(told, Mapping):
            raise TypeError(
                f"metric_minimization is {told!r}; expected a direction for each metric by its "
                'name, such as {"valid/loss": True}'
            )
        self._told = {
            name: said_direction(lower, f"the metric {name!r}", name)
            for name, lower in told.items()
        }
        self._which = which

    @overload
    def __getitem__(self, index: int) -> RunInfo: ...
    @overload
    def __getitem__(self, index: slice) -> Runs: ...
    def __getitem__(self, index: int | slice) -> RunInfo | Runs:
        if isinstance(index, slice):
            return Runs(self._runs[index], self._told, self._which)
        return self._runs[index]

    def __len__(self) -> int:
        return len(self._runs)

    @cached_property
    def minimization(self) -> dict[str, bool]:
        said: dict[str, set[bool]] = {}
        for run in self._runs:
            pairs = [(stage.metric, stage.minimization) for stage in run.stages]
            if run.metric and run.minimization is not None:
                pairs.append((run.metric, run.minimization))
            for metric, lower in pairs:
                said.setdefault(metric, set()).add(lower)
        # If two runs contradict each other, the direction is not known.
        return {name: min(both) for name, both in said.items() if len(both) == 1} | self._told

    def lower_is_better(self, metric: str) -> bool | None:
        """Whether lower values of a metric are better; None if that is not known.

        >>> Runs([], {"loss": True}).lower_is_better("valid/loss")
        True
        """
        known = self.minimization
        return known.get(metric, known.get(metric.rpartition("/")[2]))

    # ---------------------------------------------------------------- tables

    def rows(self) -> list[dict[str, Any]]:
        """The table as plain values. All rows have the same columns; missing values are None."""
        return [dict(row) for row in self._rows]

    def table(self) -> DataFrame:
        """One row a run, as a polars frame.

        Raises:
            ModuleNotFoundError: polars is not installed. `rows` does not need it.
        """
        pl: Any = import_optional("polars", for_="Runs.table")
        rows = self._rows
        frame: DataFrame = pl.DataFrame({
            name: _column(pl, name, [row[name] for row in rows]) for name in self.columns
        })  # fmt: skip
        return frame

    def metrics(self) -> DataFrame:
        """All logged values as one long frame: run, metric, step, time, value.

        Raises:
            ModuleNotFoundError: polars is not installed. `RunInfo.series` does not need it.
        """
        pl: Any = import_optional("polars", for_="Runs.metrics")
        import numpy as np  # not at the top: a list of runs does not need it

        kinds = {"run": pl.String, "metric": pl.String, "step": pl.Float64}
        kinds |= {"time": pl.Float64, "value": pl.Float64}
        parts = [pl.DataFrame(schema=kinds)]
        for run in self._runs:
            for series in run.series().values():
                columns = {"step": series.steps, "time": series.times, "value": series.values}
                own = pl.DataFrame({name: np.asarray(each) for name, each in columns.items()})
                named = (pl.lit(run.name).alias("run"), pl.lit(series.name).alias("metric"))
                parts.append(own.select(*named, "step", "time", "value"))
        frame: DataFrame = pl.concat(parts)
        return frame

    @cached_property
    def columns(self) -> list[str]:
        """The names of the table's columns."""
        return list(self._rows[0]) if self._rows else []

    def column(self, name: str) -> str:
        """The column that a name stands for.

        >>> Runs([RunInfo("1", Path("1"))]).column("los")
        Traceback (most recent call last):
        KeyError: "there is no column 'los'; the nearest: epochs, metric, run, ..."

        Raises:
            KeyError: There is no such column, with the nearest names. Without runs, no name is
                refused.
        """
        if name in self.columns or not self._runs:
            return name
        ends = [self._which] if self._which == "last" else ["best", "last"]
        for end in ends:
            known = end == "last" or self.lower_is_better(name) is not None
            if known and f"{name}.{end}" in self.columns:
                return f"{name}.{end}"
        near = sorted(self.columns, key=lambda each: -_likeness(name, each))[:5]
        raise KeyError(f"there is no column {name!r}; the nearest: {', '.join(near)}")

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        own = [run.row() for run in self._runs]
        taken = {name for row in own for name in row}
        rows = [
            row
            | {f"args.{k}" if k in taken else k: each for k, each in run.arguments.items()}
            | self._metrics_of(run)
            for run, row in zip(self._runs, own, strict=True)
        ]
        columns = dict.fromkeys(name for row in rows for name in row)
        return [{name: row.get(name) for name in columns} for row in rows]

    def _metrics_of(self, run: RunInfo) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, metric in run.metrics.items():
            lower = self.lower_is_better(name)
            best = None if lower is None else metric.best(lower)
            found |= {f"{name}.last": metric.last, f"{name}.best": best and best[0]}
            step = best and best[1]
            found[f"{name}.best_step"] = int(step) if step and step.is_integer() else step
        return found

    # ---------------------------------------------------------------- filters, orders, groups

    def _of(self, rows: Sequence[Mapping[str, Any]]) -> Runs:
        known = {id(row): run for run, row in zip(self._runs, self._rows, strict=True)}
        runs = Runs([known[id(row)] for row in rows], self.minimization, self._which)
        runs.__dict__["_rows"] = list(rows)
        runs.__dict__["columns"] = self.columns
        return runs

    def where(self, *conditions: str) -> Runs:
        """The runs for which all conditions hold.

        >>> Runs([RunInfo("1", Path("1"))]).where("state=unknown", "run~^1")[0].name
        '1'

        A condition is a column, an operator (=, !=, <, <=, >, >=, or ~ for a regular expression)
        and a value. The value is a number, true, false, or text, which may be quoted. An empty
        value after = selects runs without a value. Otherwise, only != holds for such runs.

        Raises:
            ValueError: A condition has another form, its regular expression is wrong, or its value
                has another type than the column.
            KeyError: There is no such column.
        """
        rows: Sequence[Mapping[str, Any]] = self._rows
        for condition in conditions:
            rows = select(rows, condition, self.column)
        return self._of(rows)

    def sorted(self, column: str, *, descending: bool = False) -> Runs:
        """The runs in the order of a column. Runs without a value come last.

        >>> [run.name for run in Runs([RunInfo("1", Path("1"))]).sorted("run")]
        ['1']

        Args:
            descending: Whether the highest value comes first.

        Raises:
            KeyError: There is no such column.
        """
        name = self.column(column)
        if name == "run":  # numbers by their value
            rows = sorted(self._rows, key=lambda row: _natural(row["run"]), reverse=descending)
            return self._of(rows)
        return self._of(in_order(self._rows, name, descending))

    def best_first(self, metric: str | None = None) -> Runs:
        """The runs in the order of a metric, best first. Default: the validation score.

        Args:
            metric: "valid/loss", or a column of it: "valid/loss.last".

        Raises:
            ValueError: It is not known whether lower is better.
            KeyError: There is no such column.
        """
        if metric is None:
            known = {id(run): row for run, row in zip(self._runs, self._rows, strict=True)}
            return self._of([known[id(run)] for run in best_first(self._runs)])
        column = self.column(metric)
        name = metric.removesuffix(".last").removesuffix(".best")
        lower = self.lower_is_better(name)
        if lower is None:
            raise ValueError(
                f"it is not known whether lower {name} is better: pass metric_minimization="
                f"{{{name!r}: True}} (or False) to read_runs; on the command line, --minimize "
                f"{name} or --maximize {name}"
            )
        return self._of(in_order(self._rows, column, descending=not lower))

    def groups(self, by: str | Sequence[str], of: str = "validation") -> list[dict[str, Any]]:
        """Statistics of a column over groups of runs, such as runs that differ only in the seed.

        >>> runs = [RunInfo(str(i), Path(), scores={"validation": i / 10}) for i in (1, 3)]
        >>> found = Runs(runs).groups("state")[0]
        >>> found["state"], found["count"], found["mean"]
        ('unknown', 2, 0.2)

        Args:
            by: Columns. Runs with the same values in them are a group.
            of: The column of the statistics.

        Returns:
            A dict for each group: its values of the columns; "runs", the number of its runs;
            "count", the number of finite values; and their "mean", "std", "sem" (the standard error
            of the mean), "median", "min" and "max". Statistics that need more values are None.

        Raises:
            KeyError: There is no such column.
        """
        names = [self.column(name) for name in as_names(by)]
        return grouped(self._rows, names, self.column(of))


def read_runs(logdir: PathLike, *, metric_minimization: Mapping[str, bool] | None = None) -> Runs:
    """Read the runs in a directory and below it, in the order of their names.

    >>> len(read_runs("."))
    0

    A run is a directory with `run.json`, scores, or the files of a `CheckpointManager`, at most
    four levels below. Links to directories are not followed. Directories whose names begin with a
    dot are left out. A run inside another run's directory is not listed: read that directory by
    itself. Files that cannot be read are in the run's `problems`. Logged values are read on demand.

    Args:
        logdir: The directory of the runs, or of one run.
        metric_minimization: Whether lower is better, by the names of metrics, if the runs do not
            say it: `{"valid/loss": True}`.

    Raises:
        NotADirectoryError: There is no such directory.
        TypeError: `metric_minimization` is not a mapping, or a direction is not a bool.
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
    found.sort(key=lambda run: _natural(run.name))
    return Runs(found, metric_minimization)


def some_runs(logdir: PathLike) -> Runs:
    """The runs of `read_runs`, or an error if there are none."""
    found = read_runs(logdir)
    if not found:
        raise LookupError(
            f"there are no runs in {logdir}: a run is a directory with a run.json (start_run), a "
            "scores.json (record_scores) or the checkpoints of a CheckpointManager"
        )
    return found


def argument_columns(runs: Runs) -> list[str]:
    names = dict.fromkeys(name for run in runs for name in run.arguments)
    return [f"args.{name}" if f"args.{name}" in runs.columns else name for name in names]


def best_first(runs: Sequence[RunInfo | PathLike]) -> list[RunInfo]:
    """Runs in the order of their validation scores, best first.

    >>> told = [{"validation": x, "metric": "loss", "minimization": True} for x in (0.5, 0.4)]
    >>> runs = [RunInfo(str(i), Path(), scores=scores) for i, scores in enumerate(told)]
    >>> [run.name for run in best_first(runs)]
    ['1', '0']

    `metrics.json` or the scores of a run say whether lower is better. Runs with different metrics
    cannot be compared: the metric with the most runs comes first. Runs without a score or a known
    direction come last, in their old order.

    Raises:
        TypeError: `runs` is one path.
        LookupError: There is no such run.
    """
    groups: dict[tuple[str, bool], list[tuple[float, RunInfo]]] = {}
    rest = []
    for run in run_infos(runs):
        score, lower = run.validation, run.minimization
        if score is None or lower is None:
            rest.append(run)
        else:
            groups.setdefault((run.metric, lower), []).append((score if lower else -score, run))
    largest = sorted(groups.values(), key=lambda some: -len(some))
    return [run for some in largest for _, run in sorted(some, key=lambda pair: pair[0])] + rest


def find_run(run: PathLike, logdir: PathLike = ".") -> RunInfo:
    """Find a run by its path, by its name in a log directory, or by its number.

    >>> find_run("runs/digits/007")
    Traceback (most recent call last):
    LookupError: there is no run runs/digits/007, and no runs are in .

    Args:
        run: "runs/digits/007"; "digits/007" in "runs"; or "7", if one run below the log directory
            has this number.
        logdir: The log directory. Default: the current directory.

    Raises:
        TypeError: `run` is a number. Pass it as a text.
        LookupError: There is no such run, with the nearest names; or several have the number.
    """
    if not isinstance(run, str | os.PathLike):
        raise TypeError(
            f'run is {run!r}; expected a path, a name, or a number as a text, as in "7"'
        )
    for path in (Path(run), Path(logdir, run)):
        if path.is_dir() and path in _run_paths(path):
            return read_run(path)
    name, above = str(run), Path(run).parent
    places = [Path(logdir), *([above] if above.is_dir() and above != Path() else [])]
    paths = {path: path.relative_to(place) for place in places for path in _run_paths(place)}
    if name.isdecimal():
        numbers = [p for p in paths if p.name.isdecimal() and int(p.name) == int(name)]
        if len(numbers) == 1:
            return read_run(numbers[0])
        if numbers:
            several = ", ".join(sorted(path.as_posix() for path in numbers)[:5])
            raise LookupError(
                f"{len(numbers)} runs have the number {name}: {several}; pass the name of one"
            )
    likeness = {  # to its path, or to its name in the log directory
        path.as_posix(): max(_likeness(name, path.as_posix()), _likeness(name, inside.as_posix()))
        for path, inside in paths.items()
    }
    near = sorted(likeness, key=lambda path: -likeness[path])[:3]
    hint = f"; the nearest: {', '.join(near)}" if near else f", and no runs are in {logdir}"
    raise LookupError(f"there is no run {run}{hint}")


def run_infos(runs: Iterable[RunInfo | PathLike], name: str = "runs") -> list[RunInfo]:
    if isinstance(runs, str | os.PathLike):
        raise TypeError(f"{name} is {os.fspath(runs)!r}; expected several runs: read_runs(logdir)")
    return [run_info(run) for run in runs]


def run_info(run: RunInfo | PathLike) -> RunInfo:
    return run if isinstance(run, RunInfo) else find_run(run)


def _likeness(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, name, other).ratio()


def _run_paths(root: Path, depth: int = _DEPTH) -> Iterator[Path]:
    try:
        with os.scandir(root) as entries:
            inside = list(entries)
    except (FileNotFoundError, NotADirectoryError):  # removed meanwhile, or a file
        return
    except PermissionError:  # becomes a problem of the run
        yield root
        return
    names = {entry.name for entry in inside}
    found = not names.isdisjoint((NAME, SCORES, METRICS))
    if found:
        of_run = names.isdisjoint((NAME, SCORES)) and root.name == CHECKPOINTS and depth < _DEPTH
        yield root.parent if of_run else root
    if depth and NAME not in names:
        for entry in inside:
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                below = _run_paths(Path(entry.path), depth - 1)
                # A score or a checkpoint may have been saved into the log directory.
                yield from (path for path in below if not found or (path / NAME).exists())


def _natural(name: str) -> list[tuple[int, int | str]]:
    """A key for sorting names, with numbers by their value."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in name.split("/")]


def _column(pl: Any, name: str, values: list[Any]) -> Any:
    """A column of one type. Values of several types become text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and kinds:
        whole = kinds == {int} and all(abs(v) < 2**63 for v in values if v is not None)
        return pl.Series(name, values, dtype=pl.Int64 if whole else pl.Float64, strict=False)
    if kinds == {bool}:
        return pl.Series(name, values, dtype=pl.Boolean)
    texts = [None if value is None else str(value) for value in values]
    column = pl.Series(name, texts, dtype=pl.String)
    if name in ("started", "stopped"):
        return column.str.to_datetime(time_zone="UTC", strict=False)
    return column
