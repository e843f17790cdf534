"""Files of checkpoints and of predictions: averaged, blended, looked into."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from batteries.cli._group import as_json_option, main, say
from batteries.cli._tables import print_table


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
    say(f"{output} is the average of {', '.join(map(str, files))}")


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


@main.command()
@click.argument("checkpoint", type=click.Path(exists=True))
@as_json_option
def inspect(checkpoint: str, as_json: bool) -> None:
    """Show what is in CHECKPOINT, without loading its tensors.

    \b
    batteries inspect runs/digits/003/checkpoints/best.pth
    """  # noqa: D301
    from batteries.checkpoint import peek

    values, tensors = _outlined(peek(checkpoint))
    if as_json:
        values = {name: _for_json(value) for name, value in values.items()}
        click.echo(json.dumps({"values": values, "tensors": tensors}, indent=1, default=str))
        return
    for name, value in values.items():
        say(f"{name}: {value}")
    rows = [{**tensor, "shape": str(tuple(tensor["shape"]))} for tensor in tensors]
    if rows:
        total = sum(tensor["bytes"] for tensor in tensors)
        print_table(f"{len(rows)} tensors, {total:,} bytes", rows)


def _for_json(value: Any) -> Any:
    try:
        json.dumps(value, default=str)
    except TypeError:  # keys that are no texts
        return str(value)
    return value


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
