"""Two runs side by side, and whether their difference is more than noise."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from batteries._digits import shown
from batteries._optional import import_optional
from batteries.cli._group import as_json_option, logdir_option, main, say
from batteries.cli._tables import print_table

_MANY = 1000  # lines of a table
_LONG = 2000  # letters in it


@main.command()
@click.argument("first", type=click.Path())
@click.argument("second", type=click.Path())
@logdir_option
@click.option("--predictions", help="A file that both have, such as oof.parquet.")
@click.option("--target", default="target", show_default=True, help="Its column of targets.")
@click.option("--prediction", default="probability", show_default=True, help="And of predictions.")
@click.option(
    "--metric",
    type=click.Choice(["accuracy", "log_loss", "roc_auc", "rmse", "mae"]),
    default="accuracy",
    show_default=True,
)
@as_json_option
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
    above = dict.fromkeys(run.path.resolve().parent for run in (one, other))
    among = [run for place in above for run in scoreboard.read_runs(place)]
    found = scoreboard.compare(one, other, among)
    parting = scoreboard.first_difference(one.path, other.path)
    by_seeds = found.difference if found.difference and "seeds" in found.difference.by else None
    difference = found.difference
    if predictions is not None:
        arrays = _predictions(one.path / predictions, other.path / predictions, target, prediction)
        difference = scoreboard.paired_bootstrap(*_with_metric(metric, *arrays))
        lower = metric in ("log_loss", "rmse", "mae")
        rows = dataclasses.replace(found, minimization=lower)
    verdicts = [] if by_seeds is None else [found.verdict(first, second)]
    if predictions is not None:
        verdicts.append(rows.verdict(first, second, difference))
    if as_json:
        told = {
            **vars(found),
            "difference": difference and difference._asdict(),
            "by_seeds": by_seeds and by_seeds._asdict(),
            "verdicts": verdicts or [found.verdict(first, second)],
            "parting": parting and parting._asdict(),
        }
        click.echo(json.dumps(told, indent=1, default=str))
        return
    for title, pairs in (
        ("scores", found.scores), ("arguments", found.arguments), ("versions", found.versions)
    ):  # fmt: skip
        if pairs:
            heads = (title, first, second if second != first else f"{second} ")
            some = itertools.islice(pairs.items(), _MANY)
            lines = [(name[:_LONG], *_texts(pair)) for name, pair in some]
            print_table(title, [dict(zip(heads, line, strict=True)) for line in lines])
            if len(pairs) > _MANY:
                say(f"{len(pairs) - _MANY:,} more {title} differ: --json has all")
    say(f"code: {found.code}")
    if parting is not None:
        say(str(parting))
    for verdict in verdicts or [found.verdict(first, second)]:
        say(verdict)


def _texts(values: Sequence[Any]) -> list[str]:
    """Of one row: what differs looks different."""
    texts = iter(shown([value for value in values if isinstance(value, float)]))
    return [
        next(texts) if isinstance(value, float) else "" if value is None else str(value)[:_LONG]
        for value in values
    ]


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


def _with_metric(
    name: str, target: Any, first: Any, second: Any
) -> tuple[Any, Any, Any, Callable[[Any, Any], float]]:
    """Target, predictions, and a metric that can be computed of some of their rows, too."""
    import numpy as np

    from batteries.blend._metrics import as_problem

    classes = np.unique(target)
    if name == "log_loss" or (name == "roc_auc" and len(classes) == 2 and first.ndim == 1):
        ours = as_problem([first, second], target, name.removeprefix("roc_"), None)
        first, second = ours.columns
        return ours.target, first, second, ours.score  # far faster than theirs
    metrics: Any = import_optional("sklearn.metrics", needs="scikit-learn", for_=f"--metric {name}")
    known = {
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

    return target, first, second, known.get(name, accuracy)
