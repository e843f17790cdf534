"""`batteries gaps`: whether test and leaderboard move with validation."""

from __future__ import annotations

import click

from batteries.cli._group import as_json_option, main, read, say, say_problems
from batteries.cli._tables import dumped


@main.command()
@click.argument("logdir", default="runs", type=click.Path(exists=True, file_okay=False))
@as_json_option
def gaps(logdir: str, as_json: bool) -> None:
    """Check whether test and leaderboard scores move with validation scores.

    It uses all runs below LOGDIR. LOGDIR is `runs` by default.

    \b
    batteries gaps runs
    """  # noqa: D301
    from batteries.scoreboard import check_gap, check_gaps

    found = read(logdir)
    checks = check_gaps(found)
    say_problems(found)
    if as_json:
        each = {run.name: check_gap(run) for run in found if check_gap(run)}
        click.echo(dumped({"all": [check._asdict() for check in checks], "runs": each}))
        return
    for run in found:
        for line in check_gap(run):
            say(f"{run.name}: {line}")
    for check in checks:
        text = str(check)
        if check.correlation is not None and check.interval is not None:
            low, high = check.interval
            text += f" (rank correlation {check.correlation:+.2f}, 95 % {low:+.2f} to {high:+.2f})"
        say(text)
    if not checks:
        click.echo(
            "no run has both a validation score and a test or leaderboard score: record one, for "
            "example with\nbatteries score RUN --test SCORE"
        )
