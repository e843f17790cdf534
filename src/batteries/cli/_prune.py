"""`batteries prune`: remove the checkpoints of some runs."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batteries._files import check_inside
from batteries._rundir.names import epoch_of
from batteries.cli._group import main, read, say, say_problems
from batteries.cli._tables import print_table

if TYPE_CHECKING:
    from batteries.scoreboard import RunInfo

_STATES = ("finished", "stopped", "failed", "killed", "unknown", "unreadable", "running")
_NAMES = ("best.pth", "last.pth", "best.dcp", "last.dcp")


@main.command()
@click.argument("logdir", default="runs", type=click.Path(exists=True, file_okay=False))
@click.option(
    "--keep-best",
    type=click.IntRange(0),
    metavar="N",
    help="Select all ranked runs except the best N.",
)
@click.option("--state", type=click.Choice(_STATES), help="Select runs in this state.")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="CONDITION",
    help="Select runs, as with `batteries runs --filter`.",
)
@click.option("--yes", is_flag=True, help="Remove without asking.")
def prune(
    logdir: str, keep_best: int | None, state: str | None, filters: tuple[str, ...], yes: bool
) -> None:
    """List the checkpoints of selected runs, and remove these checkpoints if you confirm it.

    The runs are those below LOGDIR (default: runs). Give one or more of the rules --keep-best,
    --state and --filter: a run is selected if all given rules select it. Scores, logged lines,
    records and all other files stay. Running runs are never selected: --state running selects
    nothing. With --keep-best, the best N runs of each metric are not selected, and neither are runs
    that cannot be ranked, such as runs without a score. A run without a record may be running: only
    --state unknown (or unreadable) selects it.

    \b
    batteries prune runs --keep-best 3
    batteries prune runs --state failed
    """  # noqa: D301
    if keep_best is None and state is None and not filters:
        raise click.UsageError("expected a rule: --keep-best, --state or --filter")
    from batteries.scoreboard._info import size_of

    found = read(logdir)
    named = [run for run in found.where(*filters) if run.state != "running"]
    say_problems(found)
    if state is None:
        sure = [run for run in named if run.state not in ("unknown", "unreadable")]
        if left_out := len(named) - len(sure):
            say(f"{left_out} runs without a readable record are left out, since they may be "
                "running: use --state unknown or --state unreadable", err=True)  # fmt: skip
        named = sure
    else:
        named = [run for run in named if run.state == state]
    if keep_best is not None:
        kept = _best(list(found.best_first()), keep_best)
        named = [run for run in named if run.name not in kept]
    files = {run.name: _files_or_why(run) for run in named}
    rows = [
        {"run": run.name, "validation": run.validation, "state": run.state}
        | {"files": len(files[run.name]), "bytes": size_of(*files[run.name])}
        for run in named
        if files[run.name]
    ]
    if not rows:
        click.echo("no checkpoints are to be removed")
        return
    print_table(f"checkpoints of {len(rows)} run{'s' * (len(rows) > 1)}", rows)
    if yes or click.confirm("Remove these checkpoints?"):
        for run in named:
            _remove(run, files[run.name])
        count = sum(map(len, files.values()))
        say("1 file is removed" if count == 1 else f"{count} files are removed")


def _best(runs: list[RunInfo], number: int) -> set[str]:
    """The names of the best runs of each metric, and of runs that cannot be ranked."""
    kept: set[str] = set()
    counts = Counter[tuple[str, bool]]()
    for run in runs:
        ranked = run.validation is not None and run.minimization is not None
        counts[run.metric, bool(run.minimization)] += ranked
        if not ranked or counts[run.metric, bool(run.minimization)] <= number:
            kept.add(run.name)
    return kept


def _files_or_why(run: RunInfo) -> list[Path]:
    """The checkpoints of a run. If they cannot be listed, a line says why."""
    try:
        return list(_files(run))
    except (OSError, ValueError) as error:
        say(f"{run.name} is left out: {error}", err=True)
        return []


def _files(run: RunInfo) -> Iterator[Path]:
    """The checkpoints of a CheckpointManager: links first, then the directories of shards."""
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


def _remove(run: RunInfo, paths: list[Path]) -> None:
    from batteries.scoreboard import read_run

    if paths and read_run(run.path).state == "running":  # it was started after the list
        raise RuntimeError(f"{run.path} is running now: its checkpoints were not removed")
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
