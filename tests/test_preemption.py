"""Signals end a run at a step, the same on all ranks, and never in a hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import context, run_ranks
from torch.utils.data import Dataset

from batteries import PreemptionGuard, distributed
from batteries.data import DataLoader

DEADLINE = 60


def steps_until_stop(told: list[int], number: int, after: int, slow: float) -> tuple[int, int]:
    """Steps that need all ranks, with a signal to some of them; where this rank stopped."""
    rank = distributed.rank()
    with PreemptionGuard(patience=30) as guard:
        for step in range(1, 10**6):
            distributed.all_reduce(1)
            if slow and step == after + 1:
                time.sleep(slow)  # a long step, of a healthy rank
            if step == after and rank in told:
                os.kill(os.getpid(), number)
            if guard.stop():
                return step, guard.exit_code
    raise AssertionError("it never stopped")


@pytest.mark.parametrize(
    ("told", "number"), [([0], signal.SIGTERM), ([1], signal.SIGUSR1), ([0, 1, 2], signal.SIGINT)]
)
def test_all_ranks_stop_at_the_same_step(told: list[int], number: int) -> None:
    """Whichever ranks get the signal, all stop after the same step."""
    for after in (1, 50):
        results = run_ranks(steps_until_stop, told, number, after, 0.0, world_size=3)
        assert len(set(results)) == 1
        assert results[0][0] >= after
        assert results[0][1] == 75


def test_long_steps_are_waited_for() -> None:
    """A rank in the middle of a long step is not taken for dead."""
    results = run_ranks(steps_until_stop, [0], signal.SIGTERM, 5, 3.0, world_size=2)
    assert len(set(results)) == 1


def test_alone() -> None:
    """One process stops at its next step, and its handlers are put back."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with PreemptionGuard() as guard:
        assert not guard.stop()
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + DEADLINE
        while not guard.requested and time.monotonic() < deadline:
            time.sleep(0.01)
        assert guard.stop()
        assert guard.stop()  # the loop may finish its window first
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert "preemption" not in [thread.name for thread in threading.enumerate()]


def test_the_second_signal() -> None:
    """A second signal, a moment after the first, leaves at once."""
    program = """
import os, signal, time
from batteries import PreemptionGuard
with PreemptionGuard():
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.5)
    time.sleep(100)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=DEADLINE)
    assert done.returncode == 75


def hang_with_a_peer(directory: str, number: int) -> None:
    """Rank 1 dies or stops; rank 0 is told while it waits for it in a collective."""
    with PreemptionGuard() as guard:
        distributed.all_reduce(torch.ones(3))
        Path(directory, str(os.environ["RANK"])).write_text(str(os.getpid()))
        if distributed.rank() == 1:
            os.kill(os.getpid(), number)
        try:
            distributed.all_reduce(torch.ones(3))
        except RuntimeError:  # gloo notices the dead
            while not guard.stop():
                time.sleep(0.1)
            os._exit(guard.exit_code)


def leave(directory: str, number: int) -> None:
    run_ranks(hang_with_a_peer, directory, number)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_dead_and_stopped_peers(number: int, tmp_path: Path) -> None:
    """With a dead or stopped peer, a rank that is told leaves in seconds, not at the timeout."""
    starter = context.Process(target=leave, args=(str(tmp_path), number))
    starter.start()
    pids: list[int] = []
    deadline = time.monotonic() + DEADLINE
    while len(pids) < 2 and time.monotonic() < deadline:
        pids = [int(text) for r in "01" if (text := _read(tmp_path / r))]
    begun = time.monotonic()
    os.kill(pids[0], signal.SIGTERM)
    while _runs(pids[0]) and time.monotonic() < begun + DEADLINE:
        time.sleep(0.05)
    taken = time.monotonic() - begun
    for pid in pids:
        if _runs(pid):
            os.kill(pid, signal.SIGKILL)
    starter.join(DEADLINE)
    assert taken < 30  # gloo's own timeout is 30 minutes


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


class Slow(Dataset[int]):
    """Tells who its workers are."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> int:
        return os.getpid()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_live_on(start: str) -> None:
    """Workers that get the signal too go on; a second SIGTERM ends them."""
    loader: Any = DataLoader(Slow(), 1, num_workers=1, multiprocessing_context=start)
    batches = iter(loader)
    worker = int(next(batches))
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        os.kill(worker, number)
    assert len(list(batches)) == 39


def test_only_in_the_main_thread() -> None:
    """In another thread it says that signals come to the main one."""
    errors: list[Exception] = []

    def enter() -> None:
        try:
            PreemptionGuard().__enter__()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert "enter it there" in str(errors[0])
