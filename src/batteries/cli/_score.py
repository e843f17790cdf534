"""`batteries score`: record the scores of a run."""

from __future__ import annotations

from typing import Any

import click

from batteries.cli._group import as_json_option, logdir_option, main, say
from batteries.cli._tables import dumped


@main.command()
@click.argument("run", type=click.Path())
@click.option("--test", type=float, help="The score on the test set.")
@click.option("--leaderboard", type=float, help="The score on the leaderboard.")
@click.option("--name", default="public", show_default=True, help="The name of the leaderboard.")
@click.option("--private", type=float, help="The score on the private part of the leaderboard.")
@click.option(
    "--validation", type=float, help="The validation score. It replaces that of the best epoch."
)
@click.option("--file", type=click.Path(exists=True, dir_okay=False), help="The submitted file.")
@click.option("-m", "--message", help="A note about the submission.")
@click.option("--metric", help="The metric of the validation score.")
@click.option(
    "--minimize/--maximize",
    "metric_minimization",
    default=None,
    help="Whether a lower or a higher score is better.",
)
@logdir_option
@as_json_option
def score(
    run: str,
    leaderboard: float | None,
    name: str,
    private: float | None,
    logdir: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Write scores into RUN, and print how far they are from the validation score.

    Each submission is kept with its file, hash, time, message and scores. If you submitted the same
    file before, a new score, such as the private one, is added to that submission.

    \b
    batteries score 3 --leaderboard 0.907 --file submission.csv -m "with warmup"
    batteries score 3 --private 0.901 --file submission.csv
    batteries score 4 --validation 0.93 --test 0.91 --metric auc --maximize
    """  # noqa: D301
    from batteries.scoreboard import check_gap, find_run, record_scores

    told = [(name, leaderboard), ("private", private)]
    boards = {board: value for board, value in told if value is not None}
    if name == "private" and None not in (leaderboard, private):
        raise click.UsageError("--name private and --private are the same score: give one of them")
    if not boards and {each for key, each in options.items() if key != "message"} == {None}:
        raise click.UsageError(
            "expected --test, --leaderboard, --private, --validation, --file, --metric, --minimize "
            "or --maximize"
        )
    path = find_run(run, logdir).path
    scores = record_scores(path, leaderboard=boards or None, **options)
    found = check_gap(find_run(path))
    if as_json:
        click.echo(dumped({"run": str(path), "scores": scores, "gaps": found}))
        return
    count = len(scores.get("submissions", []))
    kept = f"; {count} submission{'s' * (count > 1)}" if count else ""
    for line in [f"{path}/scores.json is written{kept}", *found]:
        say(line)
