"""`batteries runs`: the runs below a directory, as a table."""

from __future__ import annotations

import csv
import io
import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from batteries._foreign import printable
from batteries.cli._group import as_json_option, main, say
from batteries.cli._tables import print_table

_SPARE = ["commit", "started", "stage", "metric", "seconds", "epochs", "epoch"]  # for want of room
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "!=": operator.ne, ">=": operator.ge, "<=": operator.le, "=": operator.eq, ">": operator.gt,
    "<": operator.lt, "~": lambda value, pattern: re.search(pattern, str(value)) is not None,
}  # fmt: skip


@main.command()
@click.argument("logdir", type=click.Path(exists=True, file_okay=False))
@click.option(
    "--sort",
    metavar="COLUMN",
    help="-COLUMN: the largest first. Default: the best validation score first.",
)
@click.option(
    "--filter", "filters", multiple=True, metavar="CONDITION", help="COLUMN =, !=, >, <, ~ VALUE."
)
@as_json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
def runs(
    logdir: str, sort: str | None, filters: tuple[str, ...], as_json: bool, as_csv: bool
) -> None:
    """List the runs below LOGDIR, with their scores, the best first.

    Whether lower is better is what each run's metrics.json says.

    \b
    batteries runs runs --sort=-validation --filter state=finished --filter "validation>0.9"
    """  # noqa: D301 (click's \b)
    from batteries.scoreboard import best_first, read_runs

    found = read_runs(logdir)
    if not found:
        raise LookupError(
            f"there are no runs in {logdir}: a run is a directory with a run.json (start_run) or "
            "the checkpoints of a CheckpointManager"
        )
    rows = [run.row() for run in (found if sort else best_first(found))]
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
        left_out = print_table(logdir, rows, _SPARE)
        if left_out:
            say(f"no room for {', '.join(left_out)}: a wider terminal, --json or --csv")
    for run in found:
        for problem in run.problems:
            say(f"{run.name}: {problem}", err=True)


def _holds(condition: str, row: Mapping[str, Any]) -> bool:
    """Whether a row is one that was asked for."""
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
    down = column.startswith("-")
    if name == "run":  # they come sorted by it, with numbers by their value
        return known[::-1] if down else known
    known.sort(key=lambda row: (isinstance(row[name], str), row[name]), reverse=down)
    return known + missing


def _value(row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        raise KeyError(f"there is no column {column!r}; there are {', '.join(row)}")
    return row[column]


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writerow({name: printable(name) for name in columns})
    for row in rows:
        texts = {name: printable(each) for name, each in row.items() if isinstance(each, str)}
        writer.writerow({**row, **texts})
    return text.getvalue()
