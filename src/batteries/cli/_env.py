"""`batteries env`: information for a bug report."""

from __future__ import annotations

import json

import click

from batteries.cli._group import as_json_option, main


@main.command()
@as_json_option
def env(as_json: bool) -> None:
    """Show versions, machine and variables for a bug report. Secrets are masked.

    \b
    batteries env
    """  # noqa: D301
    from batteries._environment import environment

    found = environment()
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        if isinstance(value, dict):
            value = "".join(f"\n  {key} {each}" for key, each in value.items())
        elif isinstance(value, list):
            value = ", ".join(value) or "none"
        click.echo(f"{name}: {'none' if value is None else value}")
