"""`batteries blend`: blend files of predictions."""

from __future__ import annotations

from typing import Any

import click

from batteries.cli._group import main


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("-o", "--output", required=True, help="The .csv or .parquet to write.")
@click.option(
    "--method",
    type=click.Choice(["mean", "power", "geometric", "rank", "vote"]),
    default="mean",
    show_default=True,
    help="The mean, power mean, geometric mean or rank average, or the most frequent label.",
)
@click.option(
    "--power", type=float, default=2.0, show_default=True, help="The power of --method power."
)
@click.option("--id", "id_column", help="The column of ids. Default: the first.")
@click.option(
    "--column",
    "columns",
    multiple=True,
    help="A column to blend; may be given several times. Default: all but the ids.",
)
@click.option(
    "--weight",
    "weights",
    type=float,
    multiple=True,
    help="The weight of a file: once for each file, in order. Default: equal weights.",
)
@click.option("--renormalise", is_flag=True, help="Divide the columns by their sum in each row.")
def blend(paths: tuple[str, ...], output: str, method: Any, **options: Any) -> None:
    """Blend files of predictions. Rows are matched by their ids.

    \b
    batteries blend a.csv b.parquet --method rank -o blend.csv
    """  # noqa: D301
    from batteries.blend import blend_files

    given: dict[str, Any] = {
        name: None if value == () else value for name, value in options.items()
    }
    table = blend_files(paths, method, out=output, **given)
    rows, files = len(table), len(paths)
    click.echo(
        f"{output} has {rows:,} row{'s' * (rows != 1)}, the {method} of {files} "
        f"file{'s' * (files != 1)}"
    )
