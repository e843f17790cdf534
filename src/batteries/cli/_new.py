"""`batteries new`: an experiment to start with."""

from __future__ import annotations

from pathlib import Path

import click

from batteries.cli._group import main

_HERE = Path(__file__).parents[1]


def _examples() -> Path:
    """Where the examples are: in the wheel, or in the repository."""
    installed = _HERE / "examples"
    return installed if installed.is_dir() else _HERE.parents[1] / "examples"


_KINDS = sorted(path.parent.name for path in _examples().glob("*/experiment.py"))


@main.command()
@click.argument("kind", type=click.Choice(_KINDS))
@click.argument("directory", type=click.Path())
def new(kind: str, directory: str) -> None:
    """Copy an example experiment to DIRECTORY. It runs without changes.

    \b
    batteries new ddp my-experiment
    """  # noqa: D301
    target = Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists already: choose a new or an empty directory")
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted((_examples() / kind).iterdir()):
        if path.suffix in (".py", ".md"):  # their commands have paths of the repository
            text = path.read_text(encoding="utf-8").replace(f"examples/{kind}/", "")
            (target / path.name).write_text(text, encoding="utf-8")
    click.echo(f"{target} has {', '.join(sorted(path.name for path in target.iterdir()))}")
    click.echo(f"cd {target} && python experiment.py --help")
