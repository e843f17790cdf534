"""`batteries report`: the page of a project."""

from __future__ import annotations

import click

from batteries.cli._group import main


@main.command()
@click.argument("logdir", default="runs", type=click.Path(exists=True, file_okay=False))
@click.option("-o", "--output", default="report.html", show_default=True)
def report(logdir: str, output: str) -> None:
    """Write the runs below LOGDIR as one page, for a browser.

    \b
    batteries report runs -o report.html
    """  # noqa: D301
    from batteries.report import write_report

    click.echo(f"{write_report(logdir, output)} is written")
