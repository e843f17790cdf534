"""What importing a library adds to importing torch, each time in a fresh process."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

from measure import Timings, report

TURNS = 7
STATEMENTS = {
    # `import batteries` alone loads nothing: each name imports its room
    "batteries, names of the README": (
        "from batteries import AverageMeter, CheckpointManager, load_checkpoint, make_checkpoint, "
        "seed_all; from batteries.progress import tqdm"
    ),
    "batteries, all names": "from batteries import *",
    "ignite": "import ignite",
    "accelerate": "import accelerate",
    "Lightning": "import lightning",
}
PROGRAM = """
import time, torch
start = time.perf_counter()
{statement}
print(time.perf_counter() - start)
"""


def microseconds(statement: str) -> float:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM.format(statement=statement)]
    # pip compiles the others to bytecode; ours is compiled by the first import, if it may be kept
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    printed = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    return float(printed.splitlines()[-1]) * 1e6


def main() -> None:
    timings: Timings = {
        name: None if importlib.util.find_spec(statement.split()[1]) is None else []
        for name, statement in STATEMENTS.items()
    }
    for turn in range(TURNS + 1):
        for name, times in timings.items():
            if times is not None:
                taken = microseconds(STATEMENTS[name])
                if turn > 0:  # the first one compiles to bytecode and reads from the disk
                    times.append(taken)
    report("import_time: added to import torch", timings, reference=next(iter(timings)), unit="ms")
