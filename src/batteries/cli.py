"""The `batteries` command: look at runs, score and compare them, begin new ones."""

from __future__ import annotations

import csv
import errno
import functools
import importlib
import io
import json
import operator
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from batteries._optional import import_optional

_HERE = Path(__file__).parent
_WIDE = 10_000  # columns, where there is no terminal
_SPARE = ["commit", "started", "stage", "metric", "seconds", "epochs", "epoch"]  # for want of room
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "!=": operator.ne, ">=": operator.ge, "<=": operator.le, "=": operator.eq, ">": operator.gt,
    "<": operator.lt, "~": lambda value, pattern: re.search(pattern, str(value)) is not None,
}  # fmt: skip


class _Named(click.Group):
    """Errors that say what is wrong, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ImportError, LookupError, OSError, RuntimeError, ValueError) as error:
            if isinstance(error, click.exceptions.Exit):  # a RuntimeError too
                raise
            if isinstance(error, OSError) and error.errno == errno.EPIPE:  # `| head`: click's own
                raise
            text = error.args[0] if isinstance(error, KeyError) else error
            raise click.ClickException(str(text)) from error


@click.group(cls=_Named, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="batteries")
def main() -> None:
    """Look at runs, score and compare them, average and blend, and begin new ones."""


_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_logdir = click.option(
    "--logdir", default=".", type=click.Path(file_okay=False), help="Where runs are looked for."
)


# ---------------------------------------------------------------- runs


@main.command()
@click.argument("logdir", type=click.Path(exists=True, file_okay=False))
@click.option("--sort", metavar="COLUMN", help="-COLUMN: the largest first.")
@click.option(
    "--filter", "filters", multiple=True, metavar="CONDITION", help="COLUMN =, !=, >, <, ~ VALUE."
)
@_as_json
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
def runs(
    logdir: str, sort: str | None, filters: tuple[str, ...], as_json: bool, as_csv: bool
) -> None:
    """List the runs below LOGDIR, with their scores.

    \b
    batteries runs runs --sort=-validation --filter state=finished --filter "validation>0.9"
    """  # noqa: D301 (click's \b)
    from batteries.scoreboard import read_runs

    found = read_runs(logdir)
    if not found:
        raise LookupError(
            f"there are no runs in {logdir}: a run is a directory with a run.json (start_run) or "
            "the checkpoints of a CheckpointManager"
        )
    rows = [run.row() for run in found]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    rows = [{name: row.get(name) for name in columns} for row in rows]
    for condition in filters:
        rows = [row for row in rows if _holds(condition, row)]
    if sort:
        rows = _sorted(rows, sort)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif as_csv:
        click.echo(_csv(rows, columns), nl=False)
    else:
        left_out = _print_table(logdir, rows, _SPARE)
        if left_out:
            click.echo(f"no room for {', '.join(left_out)}: a wider terminal, --json or --csv")
    for run in found:
        for problem in run.problems:
            click.echo(f"{run.name}: {problem}", err=True)


def _holds(condition: str, row: Mapping[str, Any]) -> bool:
    """Whether a row is one that was asked for.

    >>> _holds("validation>0.9", {"validation": 0.93}), _holds("run~^a", {"run": "b"})
    (True, False)
    """
    parts = re.fullmatch(r"(.+?)\s*(!=|>=|<=|=|>|<|~)\s*(.*)", condition)
    if parts is None:
        raise ValueError(f"--filter {condition!r}: expected COLUMN, one of = != > < >= <= ~, VALUE")
    column, sign, text = parts.groups()
    value = _value(row, column)
    if text == "" or value is None:  # "validation=" asks for those without
        return (value is None or value == text) == (sign == "=")
    number = isinstance(value, int | float) and sign != "~"
    try:
        return _OPERATORS[sign](value, float(text) if number else text)
    except (ValueError, re.error) as error:
        raise ValueError(f"--filter {condition!r}: {error}") from None


def _sorted(rows: list[dict[str, Any]], column: str) -> list[dict[str, Any]]:
    """Those without a value stay behind."""
    name = column.removeprefix("-")
    known = [row for row in rows if _value(row, name) is not None]
    missing = [row for row in rows if _value(row, name) is None]
    known.sort(
        key=lambda row: (isinstance(row[name], str), row[name]), reverse=column.startswith("-")
    )
    return known + missing


def _value(row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        raise KeyError(f"there is no column {column!r}; there are {', '.join(row)}")
    return row[column]


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _print_table(
    title: str, rows: Sequence[Mapping[str, Any]], spare: Sequence[str] = ()
) -> list[str]:
    """Print rows; where they are too wide, without spare columns, which are returned."""
    tables = import_optional("rich.table", needs="rich", for_="a table (without it: --json, --csv)")
    console = import_optional("rich.console", needs="rich", for_="a table").Console(
        width=None if sys.stdout.isatty() else _WIDE, emoji=False
    )
    columns = {
        name: [_heading(name), *(_shown(name, row) for row in rows)]
        for name in (rows[0] if rows else ())
    }
    columns = {name: cells for name, cells in columns.items() if any(cells[1:])}
    left_out = []
    gaps = [name for name in columns if name.endswith("- validation")]
    for name in [name for name in [*gaps, *spare] if name in columns]:
        if _width(columns) > console.width:
            del columns[name]
            left_out.append(name)
    table = tables.Table(title=_plain(title))
    for name, cells in columns.items():
        numbers = any(isinstance(row[name], int | float) for row in rows)
        table.add_column(_plain(cells[0]), justify="right" if numbers else "left", overflow="fold")
    for index in range(len(rows)):
        table.add_row(*(_plain(cells[index + 1]) for cells in columns.values()))
    console.print(table)
    return left_out


def _width(columns: Mapping[str, Sequence[str]]) -> int:
    """Of a table with them, and its lines."""
    return 1 + sum(3 + max(map(len, cells)) for cells in columns.values())


def _plain(text: str) -> Any:
    """A text of which no part is taken for colours, or reaches the terminal as a command."""
    shown = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    return import_optional("rich.text", needs="rich", for_="a table").Text(shown)


def _heading(name: str) -> str:
    return "duration" if name == "seconds" else name


def _shown(name: str, row: Mapping[str, Any]) -> str:
    value = row[name]
    if value is None:
        return ""
    if name == "started":
        return str(value)[:16].replace("T", " ")
    if name == "seconds":
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
    if isinstance(value, float):
        return f"{value:+.4f}" if name.endswith("- validation") else f"{value:.4f}"
    return str(value)


# ---------------------------------------------------------------- scores


@main.command()
@click.argument("run", type=click.Path())
@click.option("--test", type=float, help="On the test set.")
@click.option("--leaderboard", type=float)
@click.option("--name", default="public", show_default=True, help="Of the leaderboard.")
@click.option("--validation", type=float, help="Instead of the best epoch's.")
@_logdir
@_as_json
def score(
    run: str,
    test: float | None,
    leaderboard: float | None,
    name: str,
    validation: float | None,
    logdir: str,
    as_json: bool,
) -> None:
    """Write scores into RUN, and say how far they are from validation.

    \b
    batteries score runs/digits/003 --test 0.91 --leaderboard 0.907 --name public
    """  # noqa: D301
    from batteries.scoreboard import check_gap, find_run, record_scores

    if test is leaderboard is validation is None:
        raise click.UsageError("expected --test, --leaderboard or --validation")
    path = find_run(run, logdir).path
    scores = record_scores(
        path, test=test, leaderboard=leaderboard, name=name, validation=validation
    )
    found = check_gap(find_run(path))
    if as_json:
        click.echo(json.dumps({"run": str(path), "scores": scores, "gaps": found}, indent=1))
        return
    for line in [f"{path}/scores.json is written", *found]:
        click.echo(line)


@main.command()
@click.argument("logdir", type=click.Path(exists=True, file_okay=False))
@_as_json
def gaps(logdir: str, as_json: bool) -> None:
    """Whether test and leaderboard move with validation, over the runs below LOGDIR.

    \b
    batteries gaps runs
    """  # noqa: D301
    from batteries.scoreboard import check_gap, check_gaps, read_runs

    found = read_runs(logdir)
    checks = check_gaps(found)
    if as_json:
        each = {run.name: check_gap(run) for run in found if check_gap(run)}
        click.echo(
            json.dumps({"all": [check._asdict() for check in checks], "runs": each}, indent=1)
        )
        return
    for run in found:
        for line in check_gap(run):
            click.echo(f"{run.name}: {line}")
    for check in checks:
        text = str(check)
        if check.correlation is not None and check.interval is not None:
            low, high = check.interval
            text += f" (rank correlation {check.correlation:+.2f}, 95 % {low:+.2f} to {high:+.2f})"
        click.echo(text)
    if not checks:
        click.echo("no run has a test or leaderboard score: batteries score RUN --test SCORE")


@main.command()
@click.argument("first", type=click.Path())
@click.argument("second", type=click.Path())
@_logdir
@click.option("--predictions", help="A file that both have, such as oof.parquet.")
@click.option("--target", default="target", show_default=True, help="Its column of targets.")
@click.option("--prediction", default="probability", show_default=True, help="And of predictions.")
@click.option(
    "--metric",
    type=click.Choice(["accuracy", "log_loss", "roc_auc", "rmse", "mae"]),
    default="accuracy",
    show_default=True,
)
@_as_json
def compare(
    first: str,
    second: str,
    logdir: str,
    predictions: str | None,
    target: str,
    prediction: str,
    metric: str,
    as_json: bool,
) -> None:
    """Show what differs between two runs, and whether it is more than noise.

    \b
    batteries compare 001 002 --logdir runs/digits
    batteries compare runs/a runs/b --predictions oof.parquet --metric accuracy
    """  # noqa: D301
    from batteries import scoreboard

    one, other = scoreboard.find_run(first, logdir), scoreboard.find_run(second, logdir)
    found = scoreboard.compare(one, other)
    difference = found.difference
    if predictions is not None:
        arrays = _predictions(one.path / predictions, other.path / predictions, target, prediction)
        difference = scoreboard.paired_bootstrap(*arrays, _metric(metric, *arrays[:2]))
    if as_json:
        told = {**vars(found), "difference": difference and difference._asdict()}
        click.echo(json.dumps(told, indent=1, default=str))
        return
    for title, pairs in (
        ("scores", found.scores), ("arguments", found.arguments), ("versions", found.versions)
    ):  # fmt: skip
        if pairs:
            rows = [{title: name, first: a, second: b} for name, (a, b) in pairs.items()]
            _print_table(title, [{key: _text(value) for key, value in row.items()} for row in rows])
    click.echo(f"code: {found.code}")
    if difference is not None:
        low, high = difference.interval
        verdict = "beyond noise" if difference.beyond_noise else "not beyond noise"
        click.echo(
            f"difference {difference.value:+.4f}, 95 % {low:+.4f} to {high:+.4f} "
            f"by {difference.by}: {verdict}"
        )


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)


def _predictions(one: Path, other: Path, target: str, prediction: str) -> tuple[Any, Any, Any]:
    import numpy as np

    from batteries.predictions import load

    both = [load(path) for path in (one, other)]
    for path, arrays in zip((one, other), both, strict=True):
        for name in (target, prediction):
            if name not in arrays:
                raise KeyError(f"{path} has no {name!r}; it has {', '.join(arrays)}")
    orders = [np.argsort(arrays["id"], kind="stable") for arrays in both]
    ids = [arrays["id"][order] for arrays, order in zip(both, orders, strict=True)]
    if not np.array_equal(ids[0], ids[1]):
        raise ValueError(f"{one} and {other} are predictions of different rows")
    first, second = (arrays[prediction][order] for arrays, order in zip(both, orders, strict=True))
    return both[0][target][orders[0]], first, second


def _metric(name: str, targets: Any, predictions: Any) -> Callable[[Any, Any], float]:
    """A metric that can be computed of some of the rows, too."""
    import numpy as np

    from batteries.blend.metrics import auc

    classes = np.unique(targets)
    if name == "roc_auc" and len(classes) == 2 and predictions.ndim == 1:  # far faster than theirs
        return lambda y, p: auc((y == classes[1]).astype(np.int64), p)
    metrics: Any = import_optional("sklearn.metrics", needs="scikit-learn", for_=f"--metric {name}")
    known = {
        "log_loss": functools.partial(metrics.log_loss, labels=classes),
        "roc_auc": functools.partial(metrics.roc_auc_score, labels=classes, multi_class="ovr"),
        "rmse": metrics.root_mean_squared_error,
        "mae": metrics.mean_absolute_error,
    }

    def accuracy(target: Any, prediction: Any) -> float:
        if prediction.ndim > 1:
            prediction = prediction.argmax(1)
        elif prediction.dtype.kind == "f":
            prediction = prediction >= 0.5
        return float(np.mean(target == prediction))

    found: Callable[[Any, Any], float] = known.get(name, accuracy)
    return found


# ---------------------------------------------------------------- averages and blends


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("-o", "--output", required=True, help="The checkpoint to write.")
@click.option("--best", type=click.IntRange(min=1), help="Of LOGDIR: average the best so many.")
@click.option("--weight", "weights", type=float, multiple=True, help="Of each file, in order.")
@click.option("--model", metavar="MODULE:FUNCTION", help="Makes the model, for its batch norm.")
@click.option("--loader", metavar="MODULE:FUNCTION", help="Makes the loader for it.")
def average(
    paths: tuple[str, ...],
    output: str,
    best: int | None,
    weights: tuple[float, ...],
    model: str | None,
    loader: str | None,
) -> None:
    """Average the weights in checkpoints, or in the --best ones of a LOGDIR.

    \b
    batteries average exp_3.pth exp_7.pth -o swa.pth
    batteries average runs/digits/003/checkpoints --best 3 -o swa.pth
    batteries average exp_3.pth exp_7.pth -o swa.pth --model train:make_model --loader train:batches
    """  # noqa: D301
    from batteries.averaging import best_checkpoints, save_average

    if best is not None:
        if len(paths) != 1:
            raise click.UsageError("--best takes one LOGDIR")
        files = best_checkpoints(paths[0], best)
    else:
        files = [Path(path) for path in paths]
    made = [None if name is None else _imported(name)() for name in (model, loader)]
    save_average(files, output, list(weights) or None, model=made[0], loader=made[1])
    click.echo(f"{output} is the average of {', '.join(map(str, files))}")


def _imported(name: str) -> Callable[[], Any]:
    """What a "module:function" names; modules are looked for here first."""
    module, colon, function = name.partition(":")
    if not colon:
        raise click.UsageError(f"{name!r}: expected MODULE:FUNCTION")
    sys.path.insert(0, "")
    found = importlib.import_module(module)
    if not hasattr(found, function):
        raise LookupError(f"{module} has no {function}")
    made: Callable[[], Any] = getattr(found, function)
    return made


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("-o", "--output", required=True, help="The .csv or .parquet to write.")
@click.option(
    "--method",
    type=click.Choice(["mean", "power", "geometric", "rank", "vote"]),
    default="mean",
    show_default=True,
)
@click.option("--power", type=float, default=2.0, show_default=True, help="For --method power.")
@click.option("--id", "id_column", help="Default: the first column.")
@click.option("--column", "columns", multiple=True, help="To blend; default: all but the ids.")
@click.option("--weight", "weights", type=float, multiple=True, help="Of each file, in order.")
@click.option("--renormalise", is_flag=True, help="Let the columns sum to one.")
def blend(
    paths: tuple[str, ...],
    output: str,
    method: Any,
    power: float,
    id_column: str | None,
    columns: tuple[str, ...],
    weights: tuple[float, ...],
    renormalise: bool,
) -> None:
    """Blend files of predictions, row by row of the same id.

    \b
    batteries blend a.csv b.parquet --method rank -o blend.csv
    """  # noqa: D301
    from batteries.blend import blend_files

    table = blend_files(
        paths,
        method,
        out=output,
        id_column=id_column,
        columns=list(columns) or None,
        weights=list(weights) or None,
        power=power,
        renormalise=renormalise,
    )
    click.echo(f"{output} has {len(table):,} rows, the {method} of {len(paths)} files")


# ---------------------------------------------------------------- files


@main.command()
@click.argument("checkpoint", type=click.Path(exists=True))
@_as_json
def inspect(checkpoint: str, as_json: bool) -> None:
    """Show what is in CHECKPOINT, without loading its tensors.

    \b
    batteries inspect runs/digits/003/checkpoints/best.pth
    """  # noqa: D301
    from batteries.checkpoint import peek

    values, tensors = _outlined(peek(checkpoint))
    if as_json:
        click.echo(json.dumps({"values": values, "tensors": tensors}, indent=1, default=str))
        return
    for name, value in values.items():
        click.echo(f"{name}: {value}")
    rows = [{**tensor, "shape": str(tuple(tensor["shape"]))} for tensor in tensors]
    if rows:
        total = sum(tensor["bytes"] for tensor in tensors)
        _print_table(f"{len(rows)} tensors, {total:,} bytes", rows)


def _outlined(value: Any, place: str = "") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Values and tensors by their places."""
    if hasattr(value, "numel") and hasattr(value, "dtype"):
        dtype = str(value.dtype).removeprefix("torch.")
        size = value.numel() * value.element_size()
        return {}, [{"name": place, "shape": list(value.shape), "dtype": dtype, "bytes": size}]
    if isinstance(value, Mapping) and value:
        children = [(f"{place}.{key}" if place else str(key), each) for key, each in value.items()]
    elif isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value):
        children = [(f"{place}[{index}]", each) for index, each in enumerate(value)]
    else:
        return {place: value}, []
    values: dict[str, Any] = {}
    tensors: list[dict[str, Any]] = []
    for inner, each in children:
        some, others = _outlined(each, inner)
        values |= some
        tensors += others
    return values, tensors


@main.command()
@click.argument("logdir", type=click.Path(exists=True, file_okay=False))
@click.option("-o", "--output", default="report.html", show_default=True)
def report(logdir: str, output: str) -> None:
    """Write the runs below LOGDIR as one page, for a browser.

    \b
    batteries report runs -o report.html
    """  # noqa: D301
    from batteries.report import write_report

    click.echo(f"{write_report(logdir, output)} is written")


def _examples() -> Path:
    """Where the examples are: in the wheel, or in the repository."""
    installed = _HERE / "examples"
    return installed if installed.is_dir() else _HERE.parents[1] / "examples"


class _Example(click.Choice[str]):
    name = "example"

    def __init__(self) -> None:
        folder = _examples()
        found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        super().__init__(
            sorted(name for name in found if (folder / name / "experiment.py").exists())
        )


@main.command()
@click.argument("kind", type=_Example())
@click.argument("directory", type=click.Path())
def new(kind: str, directory: str) -> None:
    """Copy an experiment to edit, which runs as it is, to DIRECTORY.

    \b
    batteries new ddp my-experiment
    """  # noqa: D301
    target = Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is there already: choose a new directory")
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted((_examples() / kind).iterdir()):
        if path.suffix in (".py", ".md"):
            shutil.copyfile(path, target / path.name)
    click.echo(f"{target} has {', '.join(sorted(path.name for path in target.iterdir()))}")
    click.echo(f"cd {target} && python experiment.py --help")


@main.command()
@_as_json
def env(as_json: bool) -> None:
    """Show what a bug report needs: versions, machine, variables; secrets are masked.

    \b
    batteries env
    """  # noqa: D301
    from batteries.environment import environment

    found = environment()
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        if isinstance(value, dict):
            value = "".join(f"\n  {key} {each}" for key, each in value.items())
        elif isinstance(value, list):
            value = ", ".join(value) or "none"
        click.echo(f"{name}: {value}")


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what lets SHELL complete commands.

    \b
    batteries completion bash >> ~/.bashrc
    """  # noqa: D301
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(main, {}, "batteries", "_BATTERIES_COMPLETE").source())
