"""`batteries completion`: completion of commands in a shell."""

from __future__ import annotations

import click

from batteries.cli._group import main


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that lets SHELL complete commands.

    \b
    batteries completion bash >> ~/.bashrc
    """  # noqa: D301
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(main, {}, "batteries", "_BATTERIES_COMPLETE").source())
