"""`batteries prune`: checkpoints of runs that a rule names are removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batteries._files import check_inside
from batteries._rundir.names import epoch_of
from batteries.cli._group import main, read, say
from batteries.cli._tables import print_table

if TYPE_CHECKING:
    from batteries.scoreboard import RunInfo

_STATES = ("finished", "stopped", "failed", "killed", "unknown", "unreadable", "running")
_NAMES = ("best.pth", "last.pth", "best.dcp", "last.dcp")


@main.command()
@click.argument("logdir", default="runs", type=click.Path(exists=True, file_okay=False))
@click.option(
    "--keep-best", type=click.IntRange(0), metavar="N", help="Those of all runs but the best N."
)
@click.option("--state", type=click.Choice(_STATES), help="Those of runs in this state.")
@click.option("--filter", "filters", multiple=True, metavar="CONDITION", help="As in `runs`.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def prune(
    logdir: str, keep_best: int | None, state: str | None, filters: tuple[str, ...], yes: bool
) -> None:
    """List, and after a yes remove, checkpoints of the runs that all rules name.

    Scores, logged lines, records and all other files stay. Runs that are running are never named,
    and with --keep-best none whose score is not known. A run without a record may be running: only
    --state unknown (or unreadable) names it. If runs have several metrics, the best N of each stay.

    \b
    batteries prune runs --keep-best 3
    batteries prune runs --state failed
    """  # noqa: D301
    if keep_best is None and state is None and not filters:
        raise click.UsageError("expected a rule: --keep-best, --state or --filter")
    found = read(logdir)
    named = [run for run in found.where(*filters) if run.state != "running"]
    if state is None:
        sure = [run for run in named if run.state not in ("unknown", "unreadable")]
        if left_out := len(named) - len(sure):
            say(f"{left_out} runs without a record that can be read are left out, as they may be "
                "running: --state unknown or --state unreadable names them", err=True)  # fmt: skip
        named = sure
    else:
        named = [run for run in named if run.state == state]
    if keep_best is not None:
        kept = _best(list(found.best_first()), keep_best)
        named = [run for run in named if run.name not in kept]
    files = {run.name: _files_or_why(run) for run in named}
    rows = [
        {"run": run.name, "validation": run.validation, "state": run.state}
        | {"files": len(files[run.name]), "bytes": _size(files[run.name])}
        for run in named
        if files[run.name]
    ]
    if not rows:
        click.echo("no checkpoints are to be removed")
        return
    print_table(f"checkpoints of {len(rows)} runs", rows)
    if yes or click.confirm("Remove them?"):
        for run in named:
            _remove(run, files[run.name])
        say(f"{sum(map(len, files.values()))} files are removed")


def _best(runs: list[RunInfo], number: int) -> set[str]:
    """The names of the best runs of each metric, and of those that cannot be ranked."""
    kept: set[str] = set()
    counts: dict[tuple[str, bool], int] = {}
    for run in runs:
        lower = run.minimization
        if run.validation is None or lower is None:
            kept.add(run.name)
            continue
        key = (run.metric, lower)
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= number:
            kept.add(run.name)
    return kept


def _files_or_why(run: RunInfo) -> list[Path]:
    """The checkpoints of a run; none, and a line that says why, where they cannot be listed."""
    try:
        return list(_files(run))
    except (OSError, ValueError) as error:
        say(f"{run.name} is left out: {error}", err=True)
        return []


def _files(run: RunInfo) -> Iterator[Path]:
    """What a CheckpointManager writes, but its scores: links before what they lead to."""
    for stage in run.stages:
        folders = set[Path]()
        if stage.path != run.path:
            check_inside(stage.path, run.path)
        for path in sorted(stage.path.iterdir()) if stage.path.is_dir() else ():
            if path.name in _NAMES or epoch_of(path.name) is not None:
                yield path
                target = path.resolve()
                if path.is_symlink() and target.parent == stage.path.resolve() / "shards":
                    folders.add(target)
        yield from sorted(folders)


def _size(paths: list[Path]) -> int:
    """Of all files, each counted once."""
    known: dict[tuple[int, int], int] = {}
    for path in paths:
        inside = os.walk(path) if path.is_dir() and not path.is_symlink() else ()
        for file in [path, *(Path(top, name) for top, _, names in inside for name in names)]:
            found = file.lstat()
            known[found.st_dev, found.st_ino] = found.st_size
    return sum(known.values())


def _remove(run: RunInfo, paths: list[Path]) -> None:
    from batteries.scoreboard import read_run

    if paths and read_run(run.path).state == "running":  # it has begun since it was listed
        raise RuntimeError(f"{run.path} is running now: nothing of it is removed")
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
