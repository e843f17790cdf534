"""Workers of loaders, when signals come and when their parent ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import pytest
import warm
from test_preemption import DEADLINE, ENV, PRELUDE
from torch.utils.data import Dataset
from warm import context, start

from batteries._preemption import ignore_signals
from batteries.data import DataLoader


class Slow(Dataset[int]):
    """Tells who its workers are."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> int:
        return os.getpid()


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_workers_live_on(start: str) -> None:
    """Workers that get the signal too go on; a second SIGTERM ends them."""
    loader: Any = DataLoader(Slow(), 1, num_workers=1, multiprocessing_context=start)
    batches = iter(loader)
    worker = int(next(batches))
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        os.kill(worker, number)
    assert len(list(batches)) == 39


EARLY = """
from batteries.data import DataLoader
def early():
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        os.kill(os.getpid(), number)
with PreemptionGuard() as guard:
    os.register_at_fork(after_in_child=early)
    print(len(list(DataLoader(range(4), num_workers=1))), guard.requested)
"""


def test_workers_live_on_from_the_first_moment() -> None:
    """A signal to a worker that was just forked, and has not come to ignore it, does no harm."""
    command = [sys.executable, "-c", PRELUDE + EARLY]
    run = warm.run(command, env=ENV, capture_output=True, text=True, timeout=DEADLINE)
    assert run.stdout == "4 False\n", run.stderr


def hang_in_c(pipe: Connection) -> None:
    ignore_signals()
    pipe.send("ready")
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    for _ in range(2):  # the second lock waits for ever, and no signal interrupts it
        libc.pthread_mutex_lock(mutex)


@pytest.mark.skipif(sys.platform != "linux", reason="knows the size of a mutex on Linux")
def test_workers_that_hang_can_be_ended() -> None:
    """SIGTERM twice in a moment is one, which a worker ignores; a later one ends it anywhere."""
    ours, theirs = context.Pipe()
    worker = start(hang_in_c, theirs)
    assert ours.recv() == "ready"
    begun = time.monotonic()
    worker.terminate()
    worker.terminate()
    while worker.exitcode is None and time.monotonic() < begun + DEADLINE:
        worker.join(0.3)
        worker.terminate()
    assert time.monotonic() - begun > 1
    assert worker.exitcode == 0


ORPHANS = """
from batteries.data import DataLoader
from torch.utils.data._utils import worker
worker.MP_STATUS_CHECK_INTERVAL = 0.5  # seconds after which a worker looks for its parent
class Pids(torch.utils.data.Dataset):
    def __len__(self):
        return 100
    def __getitem__(self, index):
        return os.getpid()
loader = DataLoader(Pids(), 1, num_workers=2)
batches = iter(loader)
print(int(next(batches)), int(next(batches)), flush=True)
LEAVE
"""


@pytest.mark.parametrize("leave", ["", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_no_orphans(leave: str) -> None:
    """Workers that ignore signals end with their parent, however it ends."""
    command = [sys.executable, "-c", PRELUDE + ORPHANS.replace("LEAVE", leave)]
    with warm.Popen(command, env=ENV, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout
        pids = [int(pid) for pid in run.stdout.readline().split()]
        assert run.stdout.read() == ""  # it ends when the last process that has the pipe does
    assert len(set(pids)) == 2
