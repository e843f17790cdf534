"""torchrun ends all workers when one dies and starts them again: they must find each other."""

from __future__ import annotations

import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import warm
from torch.distributed import HashStore, Store, TCPStore  # type: ignore[attr-defined]

from batteries import distributed
from batteries.distributed import _joining
from batteries.distributed._joining import attempt_store

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"}

PROGRAM = """
import os, signal
from datetime import timedelta
from batteries import distributed
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
with distributed.setup(timeout=timedelta(seconds=60)):
    assert distributed.all_reduce(1) == 2
    if attempt < 3 and distributed.rank() == attempt % 2:
        os.kill(os.getpid(), signal.SIGKILL)
    attempts = distributed.all_gather(attempt)
    if distributed.is_main():
        print(attempts, flush=True)
"""


def test_restarts_of_torchrun() -> None:
    """After each killed worker the next attempt's ranks find each other, not the dead."""
    Path("program.py").write_text(PROGRAM)
    command = warm.torchrun("--nproc-per-node=2", "--max-restarts=3", "program.py")
    result = warm.run(command, env=ENV, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert [*warm.told_by(result.stdout.splitlines())] == ["[3, 3]"]


def join(store: Store, rank: int) -> str:
    """The name that rank 0 wrote, as each rank reads it in the part that it was given."""
    own = attempt_store(store, rank, 3, timedelta(seconds=30))
    if rank == 0:
        own.set("written by 0", str(uuid.uuid4()))
    return str(own.get("written by 0").decode())


def test_each_attempt_has_a_part_of_the_store() -> None:
    """Ranks started together share a part, and never one of ranks that were started before."""
    store = HashStore()
    names = []
    for _ in range(5):
        store.set("attempts/asked/1", "a number of a process that died while it waited")
        with ThreadPoolExecutor(3) as threads:
            together = list(threads.map(join, [store] * 3, [2, 0, 1]))
        assert len(set(together)) == 1
        names += together[:1]
    assert len(set(names)) == 5


def test_rank_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 names the ranks that it waits for; the others say that there is no rank 0."""
    monkeypatch.setattr(_joining, "_PATIENCE", 0.05)
    store, soon = HashStore(), timedelta(seconds=0.3)
    with (
        pytest.raises(TimeoutError, match=r"rank 1 found no rank 0 in 0\.3 s"),
        pytest.warns(UserWarning, match=r"rank 1 has waited for rank 0 in setup\(\) for"),
    ):
        attempt_store(store, 1, 2, soon)
    with (
        pytest.raises(TimeoutError, match=r"waited 0\.3 s for ranks \[1, 2\], which did not come"),
        pytest.warns(UserWarning, match=r"rank 0 has waited for ranks \[1, 2\] in setup\(\) for"),
    ):
        attempt_store(store, 0, 3, soon)


def test_a_late_rank_is_told_at_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning of a rank that waits points to the program's own line."""
    monkeypatch.setattr(_joining, "_PATIENCE", 0.05)
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    launch = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost"}
    agent = {"MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
    for name, value in {**launch, **agent}.items():
        monkeypatch.setenv(name, str(value))
    with (
        pytest.raises(TimeoutError, match=r"ranks \[1\]"),
        pytest.warns(UserWarning, match="rank 0 has waited") as caught,
        distributed.setup("gloo", timeout=0.3),
    ):
        pass
    assert caught[0].filename == __file__
