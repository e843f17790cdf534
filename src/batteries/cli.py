"""The `batteries` command."""

from __future__ import annotations

import click


@click.group()
@click.version_option(package_name="batteries")
def main() -> None:
    """Look at runs, score and compare them."""
