"""Seeding python, numpy and torch."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import torch
from measure import Contender, peer, report, take_turns

from batteries import seed_all

TURNS = 40
CALLS = 100
SEED = 42


def bare() -> None:
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


def bind(module: str, function: str, **arguments: object) -> Contender | None:
    found = peer(module)
    return None if found is None else partial(getattr(found, function), SEED, **arguments)


def main() -> None:
    contenders: dict[str, Contender | None] = {
        "three bare calls": bare,
        "batteries": partial(seed_all, SEED),
        "batteries, rank=3": partial(seed_all, SEED, rank=3),
        "torchtnt": bind("torchtnt.utils.env", "seed"),
        "Lightning": bind("pytorch_lightning", "seed_everything", verbose=False),
        "ignite": bind("ignite.utils", "manual_seed"),
        "accelerate": bind("accelerate.utils", "set_seed"),
    }
    timings = take_turns(contenders, turns=TURNS, calls=CALLS)
    report("seed_all: one call", timings, reference="three bare calls")
