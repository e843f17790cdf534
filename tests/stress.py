"""The long form of what the tests promise: `make stress`, or one part of it.

python tests/stress.py --help
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from stress_collectives import collectives
from stress_deaths import every_call, kills, power_cuts
from stress_examples import examples
from stress_hosts import elastic, hosts
from stress_mutations import mutations
from stress_records import mutated_records
from stress_resume import resumes
from test_checkpoint_crashes import kill_large_saves
from test_loggers_ends import kill_when_a_store_has


def sweeps(number: int, _: random.Random) -> str:
    """All cases that `make test` leaves out, so many times."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "sweep", "-n", "logical"]
    for _again in range(number):
        subprocess.run(command, cwd=Path(__file__).parents[1], check=True)
    return "every case passed"


def stores(number: int, chance: random.Random) -> str:
    """Kill a program while MLflow makes its store."""
    for _ in range(number):
        kill_when_a_store_has(chance.randrange(1, 450_000))
    return f"{number} stores killed in the making, all can be opened"


# A part takes how often and a source of chance, and returns what was counted; it raises when a
# promise is broken.
Part = Callable[[int, random.Random], str]
PARTS: dict[str, tuple[Part, int]] = {
    "sweeps": (sweeps, 1),
    "kills": (kills, 2_000),
    "large": (kill_large_saves, 40),
    "calls": (every_call, 5),
    "mutations": (mutations, 100_000),
    "records": (mutated_records, 100_000),
    "power-ext4": (partial(power_cuts, "ext4"), 50),
    "power-xfs": (partial(power_cuts, "xfs"), 50),
    "resume": (resumes, 100),
    "collectives": (collectives, 500),
    "hosts": (hosts, 50),
    "elastic": (elastic, 20),
    "examples": (examples, 8),
    "stores": (stores, 20),
}


def run_part(name: str, number: int, seed: int = 0) -> str:
    """Run a part in an empty directory and return its report."""
    part, _ = PARTS[name]
    before, begun = Path.cwd(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            report = part(number, random.Random(seed))
        except pytest.skip.Exception as reason:
            return f"{name}: skipped: {reason}"
        finally:
            os.chdir(before)
    return f"{name}: {number:,} in {time.monotonic() - begun:.0f} s, seed {seed}: {report}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; all")
    parser.add_argument("--number", type=int, help="how often, instead of the usual")
    parser.add_argument("--budget", type=float, default=1, help="how much of the usual, as 0.1")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in arguments.parts or PARTS:
        number = arguments.number or max(1, round(PARTS[name][1] * arguments.budget))
        print(run_part(name, number, arguments.seed), flush=True)


if __name__ == "__main__":
    main()
