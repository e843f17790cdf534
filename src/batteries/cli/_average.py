"""`batteries average`: average the weights of checkpoints."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import click

from batteries.cli._group import main, say


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("-o", "--output", required=True, help="The checkpoint to write.")
@click.option(
    "--best", type=click.IntRange(min=1), help="Average the best N checkpoints of a directory."
)
@click.option(
    "--weight",
    "weights",
    type=float,
    multiple=True,
    help="The weight of a file: once for each file, in order. Default: equal weights.",
)
@click.option(
    "--model",
    metavar="MODULE:FUNCTION",
    help="A function that returns the model. New batch norm statistics need it.",
)
@click.option(
    "--loader",
    metavar="MODULE:FUNCTION",
    help="A function that returns the batches for these statistics.",
)
def average(
    paths: tuple[str, ...],
    output: str,
    best: int | None,
    weights: tuple[float, ...],
    model: str | None,
    loader: str | None,
) -> None:
    """Average the weights of checkpoints, or of the --best ones in a directory of checkpoints.

    \b
    batteries average exp_3.pth exp_7.pth -o swa.pth
    batteries average runs/digits/003/checkpoints --best 3 -o swa.pth
    batteries average exp_3.pth exp_7.pth -o swa.pth --model train:make_model --loader train:batches
    """  # noqa: D301
    from batteries.averaging import best_checkpoints, save_average

    if best is not None:
        if len(paths) != 1:
            raise click.UsageError(f"expected one directory with --best; found {len(paths)} paths")
        files = best_checkpoints(paths[0], best)
    else:
        files = [Path(path) for path in paths]
    told = (("--model", model), ("--loader", loader))
    made = [None if name is None else _made(option, name) for option, name in told]
    save_average(files, output, list(weights) or None, model=made[0], loader=made[1])
    say(f"{output} is the average of {', '.join(map(str, files))}")


def _made(option: str, name: str) -> Any:
    """The result of "module:function". Modules of the current directory come first."""
    module, _, function = name.partition(":")
    if not module or not function:
        raise click.UsageError(f"{option} is {name!r}; expected MODULE:FUNCTION")
    sys.path.insert(0, "")
    try:
        found = importlib.import_module(module)
    except Exception as error:  # the module is the user's
        raise ImportError(
            f"{option}: {module} cannot be imported ({type(error).__name__}: {error})"
        ) from error
    if not hasattr(found, function):
        raise LookupError(f"{option}: {module} has no {function}; expected MODULE:FUNCTION")
    try:
        return getattr(found, function)()
    except Exception as error:  # the function is the user's
        raise RuntimeError(f"{option}: {name} raises {type(error).__name__}: {error}") from error
