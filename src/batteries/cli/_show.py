"""`batteries show`: everything about one run."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

import click

from batteries.cli._group import as_json_option, logdir_option, main, say
from batteries.cli._tables import dumped, duration, print_table, size

_MACHINE = ("host", "platform", "cpu", "memory", "gpus", "driver", "python", "world_size")
_TAIL = 4000  # bytes at the end of the log that are read
_LONG = 300  # letters of a value


@main.command()
@click.argument("run", type=click.Path())
@logdir_option
@click.option(
    "--lines",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="How many last lines of the log to show.",
)
@as_json_option
def show(run: str, logdir: str, lines: int, as_json: bool) -> None:
    """Show how RUN was started, how it ended, its scores and its checkpoints.

    \b
    batteries show 13
    """  # noqa: D301
    from batteries.scoreboard import find_run

    found = find_run(run, logdir)
    session, row, diff = found.session, found.row(), found.diff
    log = found.log(_TAIL)[0].splitlines()
    log = log[max(len(log) - lines, 0) :]
    checkpoints = [
        {"stage": each.stage, "epoch": each.epoch, "score": each.score, "bytes": each.bytes}
        | {"file": str(each.path)}
        for each in found.checkpoints()
    ]
    submissions = found.scores.get("submissions", [])
    if as_json:
        metrics = {name: each._asdict() for name, each in found.metrics.items()}
        told: dict[str, Any] = {"row": row, "session": session, "diff": diff, "metrics": metrics}
        told |= {"scores": found.scores, "checkpoints": checkpoints, "log": log}
        click.echo(dumped({**told, "problems": found.problems}))
        return
    _say_how(found, session)
    lasts = [{"metric": name, "last": each.last} for name, each in found.metrics.items()]
    if lasts:
        print_table("\nmetrics", lasts)
    names = ("metric", "validation", "validation of", "spread", "stage", "epoch", "test")
    scores = {name: row[name] for name in names if row[name] not in (None, "")}
    scores |= {name: value for name, value in row.items() if name.startswith("leaderboard.")}
    if scores:
        _say_values("\nscores", scores)
    if submissions:
        print_table("\nsubmissions", [_submission(each) for each in submissions])
    if checkpoints:
        print_table("\ncheckpoints", checkpoints)
    for line in ["\nlast lines of the log", *log] if log else []:
        say(line)
    for problem in found.problems:
        say(problem, err=True)


def _say_how(found: Any, session: dict[str, Any]) -> None:
    times = ((each, session.get(each)) for each in ("started", "stopped"))
    ended = ", ".join([found.state, *(f"{each} {time}" for each, time in times if time)])
    took = "" if found.seconds is None else f", {duration(found.seconds)} in all"
    say(f"{found.path}: {ended}{took}, {size(found.bytes)}")
    if session.get("error"):
        say(f"error: {session['error']}"[: 10 * _LONG])
    words = session.get("launch") or session.get("command")
    told = shlex.join(map(str, words)) if isinstance(words, list) else ""
    git = session.get("git") or {}
    code = {name: git.get(name) for name in ("commit", "branch", "remote")}
    machine = {name: session.get(name) for name in _MACHINE}
    _say_values("\nstarted by", {"command": told, "directory": session.get("directory")} | code)
    if found.diff:
        say(f"  changed after the commit: {found.diff}")
    _say_values("\narguments", found.arguments)
    _say_values("\nmachine", machine)


def _say_values(title: str, values: dict[str, Any]) -> None:
    known: Iterable[Any] = [(k, v) for k, v in values.items() if v not in (None, "", [])]
    if known:
        say(title)
    for name, value in known:
        text = f"{value:.12g}" if isinstance(value, float) else str(value)  # no rounding errors
        say(f"  {name}: {text[:_LONG]}")


def _submission(each: dict[str, Any]) -> dict[str, Any]:
    names = ("time", "file", "sha256", "message")
    told = {name: str(each.get(name, "")) for name in names}
    return {**told, "sha256": told["sha256"][:12], **each.get("scores", {})}
