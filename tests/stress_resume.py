"""A long form of test_resume: runs killed at random until enough signals were sent."""

from __future__ import annotations

import random
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


def resumes(kills: int, draw: random.Random) -> str:
    """Send that many signals, in worlds of 1 to 4; no run may end with other bits."""
    warnings.filterwarnings("ignore", "This (DataLoader|process)")
    sent = runs = 0
    while sent < kills:
        world_size, workers = runs % 4 + 1, draw.choice([0, 0, 2])
        planned = random_kills(draw, world_size, workers)
        start = run_torchrun if draw.random() < 0.3 else run
        with TemporaryDirectory() as folder:
            directory = Path(folder, "killed")
            found = start(world_size, directory, planned, workers)
            sent, runs = sent + struck(directory), runs + 1
        assert found == undisturbed(world_size), (world_size, workers, start.__name__, planned)
    return f"{sent} signals to {runs} runs, all with the bits of undisturbed ones"
