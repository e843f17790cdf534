"""`batteries compare`: runs side by side, and whether they differ by more than noise."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batteries._digits import shown
from batteries.cli._group import as_json_option, logdir_option, main, say, say_problems
from batteries.cli._tables import dumped, print_table

if TYPE_CHECKING:
    from batteries.scoreboard import Comparison, Parting

_MANY = 1000  # lines of a table
_LONG = 2000  # letters of a cell


@main.command()
@click.argument("runs", type=click.Path(), nargs=-1, required=True)
@logdir_option
@click.option("--predictions", help="A file of predictions in each run, such as oof.parquet.")
@click.option(
    "--target", default="target", show_default=True, help="The column of targets in this file."
)
@click.option(
    "--prediction",
    default="probability",
    show_default=True,
    help="The column of predictions in this file.",
)
@click.option(
    "--metric",
    type=click.Choice(["accuracy", "log_loss", "roc_auc", "rmse", "mae"]),
    default="accuracy",
    show_default=True,
    help="The metric of --predictions.",
)
@as_json_option
def compare(
    runs: tuple[str, ...],
    logdir: str,
    predictions: str | None,
    target: str,
    prediction: str,
    metric: str,
    as_json: bool,
) -> None:
    """Show how two or more RUNS differ, and whether their scores differ by more than noise.

    \b
    batteries compare 7 12 13
    batteries compare runs/a runs/b --predictions oof.parquet --metric accuracy
    """  # noqa: D301
    from batteries import scoreboard

    infos = [scoreboard.find_run(run, logdir) for run in runs]
    above = dict.fromkeys(info.path.resolve().parent for info in infos)
    among = [run for place in above for run in scoreboard.read_runs(place)]
    found = scoreboard.compare(*infos, among=among)
    say_problems(infos)
    both = [(infos[0].path, other.path) for other in infos[1:]]
    partings = []
    for pair in both:
        try:
            parting = scoreboard.first_difference(*pair)
        except (OSError, ValueError) as error:
            say(str(error), err=True)
        else:
            partings += [parting] if parting else []
    by_rows = None
    if predictions is not None:
        by_rows = _by_rows(found, [info.path / predictions for info in infos],
                           target, prediction, metric)  # fmt: skip
        seeds = [each for each in found.differences if each.by.endswith("seeds")]
        found = dataclasses.replace(found, differences=seeds)
    seeds_told = by_rows is None or found.differences or found.only_seeds
    verdicts = found.verdicts() if seeds_told else []
    if by_rows is not None:
        verdicts += [by_rows.verdict(each) for each in by_rows.differences]
    if as_json:
        _print_json(found, by_rows, verdicts, partings)
        return
    _print_tables(found)
    for parting in partings:
        say(str(parting))
    for verdict in verdicts:
        say(verdict)


def _print_json(
    found: Comparison, by_rows: Comparison | None, verdicts: list[str], partings: list[Parting]
) -> None:
    told = {
        **vars(found),
        "differences": [each._asdict() for each in found.differences],
        "by_rows": [each._asdict() for each in by_rows.differences] if by_rows else [],
        "verdicts": verdicts,
        "partings": [parting._asdict() for parting in partings],
    }
    click.echo(dumped(told))


def _print_tables(found: Comparison) -> None:
    for title, pairs in (
        ("scores", found.scores), ("arguments", found.arguments), ("versions", found.versions)
    ):  # fmt: skip
        if pairs:
            some = itertools.islice(pairs.items(), _MANY)
            lines = [(name[:_LONG], *_texts(values)) for name, values in some]
            heads = (title, *found.names)
            rows = [dict(zip(heads, line, strict=True)) for line in lines]
            print_table("", rows, with_empty=True)
            if len(pairs) > _MANY:
                say(f"{len(pairs) - _MANY:,} more {title} are not shown: use --json to see all")
    say(f"\ncode: {found.code}\n")


def _by_rows(
    found: Comparison, paths: list[Path], target: str, prediction: str, metric: str
) -> Comparison:
    """The same comparison. Its noise is that of the rows in files of predictions."""
    from batteries.scoreboard._noise import by_rows, decided

    targets, predicted = _predictions(paths, target, prediction)
    y, columns, score = _with_metric(metric, targets, predicted)
    lower = metric in ("log_loss", "rmse", "mae")
    differences = decided(list(by_rows(y, columns, score)))
    return dataclasses.replace(
        found, differences=differences, metric=metric, minimization=lower, only_seeds=()
    )


def _texts(values: Sequence[Any]) -> list[str]:
    """The cells of one row. Different numbers have different texts."""
    texts = iter(shown([value for value in values if isinstance(value, float)]))
    return [
        next(texts) if isinstance(value, float) else "" if value is None else str(value)[:_LONG]
        for value in values
    ]


def _predictions(paths: list[Path], target: str, prediction: str) -> tuple[Any, list[Any]]:
    """The targets and the predictions of each file, in one order of rows."""
    import numpy as np

    from batteries.predictions import load

    for path in paths:
        if not path.exists():
            raise FileNotFoundError(
                f"there is no file {path}: --predictions needs one in each run; write it with "
                "Predictions.save(path)"
            )
    files = [load(path) for path in paths]
    for path, arrays in zip(paths, files, strict=True):
        for name in (target, prediction):
            if name not in arrays:
                raise KeyError(
                    f"{path} has no {name!r}; it has {', '.join(arrays)}: choose the columns with "
                    "--target and --prediction"
                )
    orders = [np.argsort(arrays["id"], kind="stable") for arrays in files]
    ids = [arrays["id"][order] for arrays, order in zip(files, orders, strict=True)]
    for path, own in zip(paths, ids, strict=True):
        if not np.array_equal(ids[0], own):
            raise ValueError(
                f"{paths[0]} and {path} have predictions of different rows; compare runs with the "
                "same ids"
            )
    targets, predicted = (
        [arrays[name][order] for arrays, order in zip(files, orders, strict=True)]
        for name in (target, prediction)
    )
    for path, own in zip(paths, targets, strict=True):
        kinds = targets[0].dtype.kind + own.dtype.kind
        same = np.allclose if "f" in kinds and set(kinds) <= set("biuf") else np.array_equal
        if own.shape != targets[0].shape or not same(targets[0], own):
            raise ValueError(
                f"{paths[0]} and {path} have different targets for the same ids; compare runs of "
                "the same data"
            )
    return targets[0], predicted


def _with_metric(
    name: str, target: Any, predicted: list[Any]
) -> tuple[Any, list[Any], Callable[[Any, Any], float]]:
    """Target, predictions, and a metric that also works on some of their rows."""
    from batteries._scoring import as_scoring
    from batteries.blend._metrics import as_problem

    if name == "log_loss" or (name == "roc_auc" and predicted[0].ndim == 1):
        ours = as_problem(predicted, target, name, None)
        return ours.target, ours.columns, ours.score  # much faster than scikit-learn's
    scoring = as_scoring("roc_auc_ovr" if name == "roc_auc" else name)
    return target, predicted, scoring.of(target)
