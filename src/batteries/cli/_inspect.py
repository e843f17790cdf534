"""`batteries inspect`: a checkpoint, without its tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from batteries.cli._group import as_json_option, main, say
from batteries.cli._tables import dumped, print_table


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
        click.echo(dumped({"values": values, "tensors": tensors}))
        return
    for name, value in values.items():
        say(f"{name}: {value}")
    rows = [{**tensor, "shape": str(tuple(tensor["shape"]))} for tensor in tensors]
    if rows:
        total = sum(tensor["bytes"] for tensor in tensors)
        print_table(f"{len(rows)} tensor{'s' * (len(rows) > 1)}, {total:,} bytes", rows)


def _for_json(value: Any) -> Any:
    try:
        json.dumps(value, default=str)
    except TypeError:  # keys that are not texts
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
