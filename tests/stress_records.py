"""Read changed records, histories, scores, lines, notes and indexes: told, or refused, in time."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import hostile
from torch import nn

from batteries import CheckpointManager, make_checkpoint, save_checkpoint
from batteries.averaging import best_checkpoints
from batteries.checkpoint import peek
from batteries.checkpoint._read_shards import Shards
from batteries.checkpoint._seal import read_note
from batteries.report._contents import contents_of
from batteries.report._page import data_of
from batteries.scoreboard import check_gap, compare, read_runs

LONGEST = 20  # seconds for one file, on a busy machine; the system ends a program that takes more
MEMORY = 256 * 2**20  # bytes that reading all of them may add
EACH = 50  # files after which what lies outside is looked at
NAMES = ["run.json", "scores.json", "metrics.json", "metrics.jsonl", "note", "index"]


def mutated_records(number: int, chance: random.Random) -> str:
    """A run in which one file after the other is another's."""
    warnings.simplefilter("ignore")
    folder = hostile.outside(Path())
    before, longest, counts = hostile.snapshot(folder), 0.0, dict.fromkeys(("told", "taken"), 0)
    hostile.make_run(Path("runs/good"))
    with CheckpointManager("saved") as manager:
        manager.process(0.5, 1, make_checkpoint("train", 1, nn.Linear(1, 1)))
    with CheckpointManager("sharded", sharded=True) as manager:
        manager.process(0.5, 1, make_checkpoint("train", 1, nn.Linear(1, 1)))
    index = peek("sharded/last.dcp/index.pth")
    note = read_note("saved/last.pth")
    used = memory()
    for n in range(number):
        name = NAMES[n % len(NAMES)]
        begun = time.monotonic()
        signal.alarm(LONGEST)
        if name == "note":
            changed = hostile.mutated(json.dumps(note).encode(), chance, whole=True)
            told = with_note(json.loads(changed))
        elif name == "index":
            told = with_index(index, chance)
        else:
            told = with_file(name, hostile.mutated(json.dumps(hostile.GOOD[name]).encode(), chance))
        signal.alarm(0)
        longest = max(longest, time.monotonic() - begun)
        counts["told" if told else "taken"] += 1
        if n % EACH == 0 or n == number - 1:
            assert hostile.snapshot(folder) == before, f"{name} {n} reaches outside"
    grown = max(0, memory() - used)
    assert grown < MEMORY, f"{grown:,} bytes"
    return (
        f"{counts['told']:,} told or refused, {counts['taken']:,} taken, the other run shown, "
        f"nothing outside touched; {longest:.2f} s for the slowest, {grown / 2**20:.0f} MiB more"
    )


def memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10


def with_file(name: str, text: bytes) -> bool:
    """Whether the file is told of, while the other run is shown."""
    shutil.rmtree("runs/a", ignore_errors=True)
    path = hostile.make_run(Path("runs/a"), name, hostile.written(text))
    found = read_runs("runs")
    runs = {run.name: run for run in found}
    assert not runs["good"].problems
    page = [contents_of(run) for run in found]
    json.loads(data_of("runs", found, page))
    check_gap(runs["a"])
    if name == "run.json":
        compare(runs["good"], runs["a"])
    refused = name == "metrics.json" and not _reads(path)
    return bool(page[0].problems) or refused


def _reads(path: Path) -> bool:
    """A manager and an average read the same file."""
    with suppress(FileNotFoundError, ValueError):
        best_checkpoints(path, 1)
    try:
        CheckpointManager(path, save_n_best=1)
    except ValueError:
        return False
    return True


def with_note(note: Any) -> bool:
    """Whether a save with that note in its file is refused."""
    logdir = hostile.copied(Path("saved"), Path("one"))
    hostile.save_noted({"epoch": 1}, logdir / "last.pth", note)
    try:
        CheckpointManager(logdir)
    except (OSError, ValueError):
        return True
    finally:
        shutil.rmtree(logdir)
    return False


def with_index(index: dict[str, Any], chance: random.Random) -> bool:
    """Whether a directory with a changed index is refused."""
    text = json.dumps({name: index[name] for name in ("shapes", "files")}).encode()
    changed = json.loads(hostile.mutated(text, chance, whole=True))
    logdir = hostile.copied(Path("sharded"), Path("one"))
    folder = next((logdir / "shards").iterdir())
    parts = changed if isinstance(changed, dict) else {}
    save_checkpoint({"checkpoint": {}, **parts}, folder / "index.pth")
    try:
        Shards(folder)
    except (OSError, ValueError):
        return True
    finally:
        shutil.rmtree(logdir)
    return False
