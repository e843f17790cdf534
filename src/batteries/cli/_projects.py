"""The page of a project, an experiment to begin with, the environment, completion."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click

from batteries.cli._group import as_json_option, main

_HERE = Path(__file__).parents[1]


@main.command()
@click.argument("logdir", type=click.Path(exists=True, file_okay=False))
@click.option("-o", "--output", default="report.html", show_default=True)
def report(logdir: str, output: str) -> None:
    """Write the runs below LOGDIR as one page, for a browser.

    \b
    batteries report runs -o report.html
    """  # noqa: D301
    from batteries.report import write_report

    click.echo(f"{write_report(logdir, output)} is written")


def _examples() -> Path:
    """Where the examples are: in the wheel, or in the repository."""
    installed = _HERE / "examples"
    return installed if installed.is_dir() else _HERE.parents[1] / "examples"


class _Example(click.Choice[str]):
    name = "example"

    def __init__(self) -> None:
        folder = _examples()
        found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        super().__init__(
            sorted(name for name in found if (folder / name / "experiment.py").exists())
        )


@main.command()
@click.argument("kind", type=_Example())
@click.argument("directory", type=click.Path())
def new(kind: str, directory: str) -> None:
    """Copy an experiment to edit, which runs as it is, to DIRECTORY.

    \b
    batteries new ddp my-experiment
    """  # noqa: D301
    target = Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is there already: choose a new directory")
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted((_examples() / kind).iterdir()):
        if path.suffix in (".py", ".md"):
            shutil.copyfile(path, target / path.name)
    click.echo(f"{target} has {', '.join(sorted(path.name for path in target.iterdir()))}")
    click.echo(f"cd {target} && python experiment.py --help")


@main.command()
@as_json_option
def env(as_json: bool) -> None:
    """Show what a bug report needs: versions, machine, variables; secrets are masked.

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
        click.echo(f"{name}: {value}")


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what lets SHELL complete commands.

    \b
    batteries completion bash >> ~/.bashrc
    """  # noqa: D301
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(main, {}, "batteries", "_BATTERIES_COMPLETE").source())
