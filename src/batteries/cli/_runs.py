"""`batteries runs`: the runs below a directory, as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from batteries.cli._group import as_json_option, main, read, say, say_problems
from batteries.cli._tables import as_csv, as_latex, as_markdown, dumped, print_table

if TYPE_CHECKING:
    from batteries.scoreboard import Runs

_SCORES = ("validation", "validation of", "spread", "test")
_LAST = ("state", "why", "seconds", "bytes")


def _formats(command: Callable[..., None]) -> Callable[..., None]:
    for shown in ("LaTeX", "Markdown", "CSV"):
        name = shown.lower()
        option = click.option(f"--{name}", f"as_{name}", is_flag=True, help=f"Print {shown}.")
        command = option(command)
    return as_json_option(command)


@main.command()
@click.argument("logdir", default="runs", type=click.Path(exists=True, file_okay=False))
@click.option("--best", metavar="METRIC", help="Show and rank by the best value of a metric.")
@click.option("--last", metavar="METRIC", help="Show and rank by the last value of a metric.")
@click.option(
    "--minimize", multiple=True, metavar="METRIC", help="Lower is better for this metric."
)
@click.option(
    "--maximize", multiple=True, metavar="METRIC", help="Higher is better for this metric."
)
@click.option(
    "--filter", "filters", multiple=True, metavar="CONDITION",
    help="Show only these runs: 'lr=0.1', 'valid/loss<0.3', 'run~^dig'. Operators: =, !=, <, <=, "
    ">, >=, and ~ for a regular expression.",
)  # fmt: skip
@click.option(
    "--sort",
    metavar="COLUMN",
    help="Sort by a column: best first for a metric, else lowest first. -COLUMN: highest first.",
)
@click.option(
    "--group-by",
    metavar="COLUMNS",
    help="Show mean and spread of runs with equal values in these columns, separated by commas.",
)
@click.option(
    "--columns",
    metavar="COLUMNS",
    help="Show only these columns, separated by commas. --group-by has its own columns.",
)
@click.option("--all-columns", is_flag=True, help="Show all columns.")
@_formats
def runs(
    logdir: str,
    best: str | None,
    last: str | None,
    minimize: tuple[str, ...],
    maximize: tuple[str, ...],
    filters: tuple[str, ...],
    sort: str | None,
    group_by: str | None,
    columns: str | None,
    all_columns: bool,
    **formats: bool,
) -> None:
    """List the runs below LOGDIR, best first, with their scores and the arguments that differ.

    LOGDIR is `runs` by default.

    A run records whether lower is better, with CheckpointManager or record_scores. --minimize and
    --maximize say it for other metrics. JSON and CSV have all columns.

    \b
    batteries runs --filter lr=0.1 --filter "valid/loss<0.3" --best valid/loss
    batteries runs runs/digits --group-by lr --last valid/loss --minimize valid/loss
    """  # noqa: D301 (click's \b)
    if best and last:
        raise click.UsageError("expected --best or --last; found both")
    if both := {*minimize} & {*maximize}:
        raise click.UsageError(f"expected --minimize or --maximize {both.pop()}; found both")
    if sum(formats.values()) > 1:
        raise click.UsageError("expected one of --json, --csv, --markdown and --latex")
    said = {**dict.fromkeys(minimize, True), **dict.fromkeys(maximize, False)}
    found = read(logdir, said, which="last" if last else "best")
    shown, column = _ranked(found.where(*filters), best, last, sort)
    if group_by:
        rows: Sequence[dict[str, Any]] = _groups(shown, _split(group_by), column, sort)
        names = list(rows[0]) if rows else _split(group_by)
    else:
        rows = shown.rows()
        if columns:
            names = [shown.column(name) for name in _split(columns)]
        elif all_columns or formats["as_json"] or formats["as_csv"]:
            names = shown.columns
        else:
            names = _default(shown, rows, column)
        rows = [{name: row[name] for name in names} for row in rows]
    exact = {name.removesuffix("args.") for run in found for name in run.arguments}
    if formats["as_csv"] and not group_by:  # "runs/001", since "001" would be read as a number
        paths = {run.name: str(run.path) for run in shown}
        rows = [{**row, "run": paths[row["run"]]} if "run" in row else row for row in rows]
    _print(_title(logdir, shown, column), rows, names, exact, **formats)
    say_problems(found)


def _ranked(runs: Runs, best: str | None, last: str | None, sort: str | None) -> tuple[Runs, str]:
    """The runs in the order of --best, --last or --sort, and the column of the score."""
    metric = best or last
    column = f"{metric}.{'last' if last else 'best'}" if metric else "validation"
    if len(runs):
        column = runs.column(column)
    if sort is None:
        return runs.best_first(column if metric else None), column
    name = runs.column(sort.removeprefix("-"))
    if sort.startswith("-"):
        return runs.sorted(name, descending=True), column
    if name == "validation":
        return runs.best_first(), column
    lower = runs.lower_is_better(_metric_of(runs, name))
    return (runs.sorted(name) if lower is None else runs.best_first(name)), column


def _metric_of(runs: Runs, column: str) -> str:
    if column == "validation":
        metrics = {run.metric for run in runs if run.validation is not None}
        return metrics.pop() if len(metrics) == 1 else ""
    return column.removesuffix(".last").removesuffix(".best")


def _title(logdir: str, runs: Runs, column: str) -> str:
    metric = _metric_of(runs, column)
    lower = runs.lower_is_better(metric) if metric else None
    which = {"last": "last ", "best": "best "}.get(column.rpartition(".")[2], "validation ")
    said = {True: " (lower is better)", False: " (higher is better)", None: ""}[lower]
    by = f", by {which}{metric}{said}" if metric else ""
    return f"{logdir}: {len(runs)} run{'s' * (len(runs) != 1)}{by}"


def _default(runs: Runs, rows: Sequence[dict[str, Any]], column: str) -> list[str]:
    """The default columns: arguments that differ, scores and states."""
    from batteries.scoreboard._runs import argument_columns

    differ = [name for name in argument_columns(runs) if len({repr(row[name]) for row in rows}) > 1]
    scores = [name for name in _SCORES if name != "validation of"]
    if {row["validation of"] for row in rows} - {"best epoch", ""}:
        scores = list(_SCORES)
    boards = [name for name in runs.columns if name.startswith("leaderboard.")]
    gaps = [name for name in runs.columns if name.endswith("- validation")]
    own = [name for name in (column, *scores, *boards, *gaps, *_LAST) if name in runs.columns]
    return list(dict.fromkeys(["run", *differ, *own]))


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",")]


def _groups(runs: Runs, by: Sequence[str], column: str, sort: str | None) -> list[dict[str, Any]]:
    """The groups, best first; with --sort, in the order of their first runs."""
    found = runs.groups(by, of=column)
    lower = runs.lower_is_better(_metric_of(runs, column))
    worst = float("inf")
    if lower is not None and sort is None:
        sign = 1 if lower else -1
        found.sort(key=lambda row: worst if row["mean"] is None else sign * row["mean"])
    return found


def _print(
    title: str, rows: Sequence[dict[str, Any]], names: Sequence[str], exact: set[str],
    **formats: bool,
) -> None:  # fmt: skip
    if formats["as_json"]:
        click.echo(dumped(rows))
    elif formats["as_csv"]:
        click.echo(as_csv(rows, names), nl=False)
    elif formats["as_markdown"]:
        click.echo(as_markdown(rows, names, exact), nl=False)
    elif formats["as_latex"]:
        click.echo(as_latex(rows, names, exact), nl=False)
    else:
        gaps = [name for row in rows[:1] for name in row if name.endswith("- validation")]
        left_out = print_table(title, rows, [*gaps, "spread", "bytes", "seconds", "why"], exact)
        if left_out:
            say(f"no room for {', '.join(left_out)}: widen the terminal, or use --json or --csv")
