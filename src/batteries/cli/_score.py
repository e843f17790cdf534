"""`batteries score`: what a run is told."""

from __future__ import annotations

import json

import click

from batteries.cli._group import as_json_option, logdir_option, main, say


@main.command()
@click.argument("run", type=click.Path())
@click.option("--test", type=float, help="On the test set.")
@click.option("--leaderboard", type=float)
@click.option("--name", default="public", show_default=True, help="Of the leaderboard.")
@click.option("--validation", type=float, help="Instead of the best epoch's.")
@logdir_option
@as_json_option
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
        say(line)
