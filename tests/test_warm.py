"""Programs that are forked from a warm process."""

from __future__ import annotations

import sys

import warm

PROGRAM = """
import os, threading, torch
from concurrent.futures import ThreadPoolExecutor

torch.set_num_threads(1)
x = torch.ones(200_000)
torch.set_num_threads(64)  # a pool that takes long to make

def compute(barrier):
    barrier.wait()
    x.mul(2).sum()

for _ in range(12):
    if not os.fork():
        barrier = threading.Barrier(4)
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(compute, [barrier] * 4))
        os._exit(0)
    assert os.wait()[1] == 0
"""


def test_threads_of_a_fork_use_torch_at_once() -> None:
    """The first calls of torch in a fork may come from several threads."""
    warm.run([sys.executable, "-c", PROGRAM], check=True)
