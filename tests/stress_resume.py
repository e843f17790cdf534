"""A long form of test_resume: runs killed at random until enough signals were sent.

python tests/stress_resume.py 100
"""

from __future__ import annotations

import random
import sys
import time
import warnings
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from killable import SAMPLES, STEPS, Kill, run, run_torchrun, struck

KILLS_OF_A_RUN = 5


@cache
def undisturbed(world_size: int) -> str:
    with TemporaryDirectory() as folder:
        return run(world_size, Path(folder, "whole"), [])


def random_kills(draw: random.Random, world_size: int, workers: int) -> list[Kill]:
    kinds = ["SIGKILL", "SIGKILL", "SIGTERM", *(["worker"] if workers else [])]
    kills: set[Kill] = set()
    while len(kills) < KILLS_OF_A_RUN:
        what = draw.choice(kinds)
        number = draw.randrange(SAMPLES) if what == "worker" else draw.randint(1, STEPS)
        kills.add((number, draw.randrange(world_size), what))
    return sorted(kills)


def main(kills: int, seed: int = 0) -> int:
    """Send that many signals, in worlds of 1 to 4; how many runs ended with other bits."""
    warnings.filterwarnings("ignore", "This (DataLoader|process)")
    draw, sent, runs, different, begun = random.Random(seed), 0, 0, 0, time.monotonic()
    while sent < kills:
        world_size, workers = runs % 4 + 1, draw.choice([0, 0, 2])
        planned = random_kills(draw, world_size, workers)
        start = run_torchrun if draw.random() < 0.3 else run
        with TemporaryDirectory() as folder:
            directory = Path(folder, "killed")
            same = start(world_size, directory, planned, workers) == undisturbed(world_size)
            sent += struck(directory)
        runs, different = runs + 1, different + (not same)
        taken = f"{time.monotonic() - begun:.0f} s"
        print(f"{sent:4d} signals, {runs} runs, {different} different, {taken}: ", end="")
        print(f"world {world_size}, {workers} workers, {start.__name__}, {planned}", flush=True)
    return different


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100) > 0)
