"""Ranks that do not do the same are told so, and ranks that do not come are named."""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from warm import context

from batteries import distributed, start_run
from batteries.distributed import _joining, _rank_zero
from batteries.distributed._agreement import Transfer, agree
from batteries.distributed._groups import notes
from batteries.distributed._messages import encode
from batteries.distributed._rank_zero import others_wait
from batteries.distributed._waiting import Notes, StoreGoneError, wait_until

TWO, THREE = torch.zeros(2), torch.zeros(3)
PAIRS: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "operations": (distributed.barrier, lambda: distributed.all_gather(1)),
    "shapes": (lambda: distributed.all_reduce(TWO), lambda: distributed.all_reduce(THREE)),
    "dtypes": (lambda: distributed.all_reduce(TWO.int()), lambda: distributed.all_reduce(TWO)),
    "reductions": (
        lambda: distributed.all_reduce(TWO, "min"),
        lambda: distributed.all_reduce(TWO, "max"),
    ),
    "kinds": (lambda: distributed.all_reduce(1), lambda: distributed.all_reduce(TWO)),
    "sources": (lambda: distributed.broadcast(1), lambda: distributed.broadcast(1, src=1)),
}


def do_another(kind: str) -> float:
    begun = time.monotonic()
    try:
        PAIRS[kind][min(distributed.rank(), 1)]()
    except RuntimeError as error:
        assert "the ranks are not doing the same: rank 0: " in str(error)  # noqa: PT017
        assert "; rank 1, 2: " in str(error)  # noqa: PT017
        assert str(error).count("test_distributed_agreement.py:") >= 2  # noqa: PT017
        return time.monotonic() - begun
    raise AssertionError("nothing was noticed")


@pytest.mark.parametrize("kind", PAIRS)
def test_different_calls(kind: str) -> None:
    """Calls that differ raise on every rank, which names both places, and nobody waits."""
    assert all(isinstance(taken, float) for taken in run_ranks(do_another, kind, world_size=3))


def loss_then_accuracy() -> list[float]:
    loss = accuracy = 0.0
    for name in ["loss", "accuracy"] if distributed.rank() == 0 else ["accuracy", "loss"]:
        if name == "loss":
            loss = distributed.all_reduce(0.5, "mean")
        else:
            accuracy = distributed.all_reduce(0.9, "mean")
    return [loss, accuracy]


def test_another_order() -> None:
    """The same calls in another order are an error on every rank, not wrong numbers."""
    for error in run_ranks(loss_then_accuracy):
        assert "rank 0: all_reduce(mean) of a number at test_distributed_agreement" in str(error)


def average(value: float) -> float:
    return distributed.all_reduce(value, "mean")


def through_a_function() -> list[float]:
    if distributed.rank() == 0:
        return [average(0.5), average(0.9)]
    accuracy = average(0.9)
    return [average(0.5), accuracy]


def test_another_order_through_a_function() -> None:
    """That the calls are in one function of the user's does not hide their order."""
    for error in run_ranks(through_a_function):
        assert "the ranks are not doing the same" in str(error)
        assert ", from test_distributed_agreement.py" in str(error)


def from_different_places() -> list[object]:
    if distributed.rank() == 0:
        return [
            distributed.broadcast("zero", check=False),
            distributed.all_gather(0, check=False),
            distributed.all_reduce(1, check=False),
            distributed.all_reduce(torch.ones(1), check=False).item(),
        ]
    return [
        distributed.broadcast(None, check=False),
        distributed.all_gather(1, check=False),
        distributed.all_reduce(2, check=False),
        distributed.all_reduce(torch.ones(1), check=False).item(),
    ]


def test_different_places_on_purpose() -> None:
    """With `check=False` the ranks may call from different places."""
    assert run_ranks(from_different_places) == [["zero", [0, 1], 3, 2.0]] * 2


class CountingStore(dist.Store):  # type: ignore[name-defined,misc]
    """A store that counts what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.kept, self.asked = dist.HashStore(), 0  # type: ignore[attr-defined]

    def set(self, key: str, value: str) -> None:
        self.kept.set(key, value)

    def check(self, keys: list[str]) -> bool:
        self.asked += 1
        return bool(self.kept.check(keys))

    def get(self, key: str) -> bytes:
        self.asked += 1
        return bytes(self.kept.get(key))


class AtTheThirdLook:
    """What a collective gives, of one that takes long."""

    looks = 0

    def wait(self, *_: Any) -> None: ...

    def is_completed(self) -> bool:
        self.looks += 1
        return self.looks == 3


def wait_among_many() -> tuple[int, dict[int, str]]:
    importlib.import_module("torch.testing._internal.distributed.fake_pg")  # 1000 ranks in one
    store = CountingStore()
    dist.init_process_group("fake", store=store, rank=0, world_size=1000)
    transfer, store.asked = Transfer("barrier"), 0
    with transfer.sending():
        transfer.wait(AtTheThirdLook(), torch.device("cpu"))
    asked = store.asked
    notes().set("left/7", json.dumps(["no data", False, {}]))
    return asked, transfer._gone()


def test_the_store_of_many_ranks() -> None:
    """As long as nobody has left, one of 1000 ranks asks the store one question at each look."""
    [(asked, gone)] = run_ranks(wait_among_many, world_size=1, group=False)
    assert asked == 2
    assert gone == {7: "no data"}


# ---------------------------------------------------------------- in the middle


def leave_in_the_middle() -> object:
    with distributed.setup():
        agree("test", encode(None)[0])
        transfer, rank = Transfer("test"), distributed.rank()
        if rank == 1:  # what it began waits for rank 0, which waits for it
            dist.broadcast(torch.zeros(1), src=0, async_op=True)
            raise ValueError("no data")
        with transfer.sending():
            work = dist.broadcast(torch.zeros(1), src=1, async_op=True)
            transfer.wait(work, torch.device("cpu"))
    return None


def test_left_with_more_under_way() -> None:
    """A rank that leaves while its own transfers wait for others ends theirs, and is named."""
    first, middle, last = run_ranks(leave_in_the_middle, world_size=3, group=False)
    assert isinstance(middle, ValueError)
    for error in (first, last):
        assert str(error).endswith("failed: rank 1 has left: ValueError: no data")


def come_after_an_error() -> None:
    with distributed.setup():
        transfer = Transfer("barrier")
        if distributed.rank() == 0:  # it gives up, as after the timeout
            with transfer.sending():
                raise RuntimeError("nobody came")
        wait_until(lambda: notes().check(["left/0"]), 60)
        distributed.barrier()


def test_a_rank_that_has_given_up() -> None:
    """A rank that comes too late is told why another rank has left."""
    first, late = run_ranks(come_after_an_error, group=False)
    assert "rank 1 did not come" in str(first)
    assert "failed: rank 0 has left: MissingRankError: barrier at test_dist" in str(late)


def host_a_store(pipe: Connection) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    pipe.send(store.port)
    pipe.recv()


def test_a_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question to a store whose host was stopped ends, the next one at once, until it answers."""
    monkeypatch.setattr("batteries.distributed._waiting.ANSWER", 1.0)
    ours, theirs = context.Pipe()
    host = context.Process(target=host_a_store, args=(theirs,))
    host.start()
    store = dist.TCPStore("127.0.0.1", ours.recv(), is_master=False)  # type: ignore[attr-defined]
    words = Notes(store)
    words.set("key", "word")
    assert host.pid
    os.kill(host.pid, signal.SIGSTOP)
    assert wait_until(lambda: not answers(words), 60)  # its threads stop one after another
    begun = time.monotonic()
    with pytest.raises(StoreGoneError, match="the ranks' store does not answer"):
        words.get("key")
    assert time.monotonic() - begun < 0.9
    os.kill(host.pid, signal.SIGCONT)
    assert wait_until(lambda: answers(words), 60)
    assert words.get("key") == "word"
    host.kill()
    host.join()
    with pytest.raises(StoreGoneError, match="the ranks' store is gone"):
        words.get("key")


def answers(words: Notes) -> bool:
    with suppress(StoreGoneError):
        return words.check(["key"])
    return False


def outlive_rank_zero(directory: str) -> None:
    _rank_zero._SAY_EVERY, _rank_zero._SILENCE, _joining._LEAVE = 0.2, 2.0, 0.1
    with distributed.setup():
        with others_wait():
            if distributed.rank() == 0:
                assert wait_until(lambda: notes().check(["turn 1/works"]), 60)
                os.kill(os.getpid(), signal.SIGKILL)
        Path(directory, "over").touch()


def test_rank_zero_killed_at_its_work(tmp_path: Path) -> None:
    """Ranks that wait for rank 0's long work go on when it was killed in it."""
    with pytest.raises(EOFError):  # from rank 0
        run_ranks(outlive_rank_zero, str(tmp_path), group=False)
    assert (tmp_path / "over").exists()


def save_alone() -> str:
    """Rank 0 alone calls a function of ours, while the other rank sends data as FSDP2 does."""
    if distributed.rank():
        weights = torch.full((2**13,), 200, dtype=torch.uint8)
        dist.all_gather([torch.empty_like(weights) for _ in range(2)], weights)
        return ""
    with pytest.raises(RuntimeError, match="the ranks are not doing the same") as told:
        distributed.all_gather("a checkpoint")
    return str(told.value)


def test_data_of_another_collective() -> None:
    """A rank that gets the data of a collective of torch's own says so, with its own place."""
    told, _ = run_ranks(save_alone)
    assert re.search(r"rank 0: all_gather at test_distributed_agreement.py:\d+", told)
    assert "; rank 1: another collective, of PyTorch itself (DDP, FSDP)." in told


def train_until(directory: str, end: str, where: int) -> None:
    _joining._LEAVE = _rank_zero._SILENCE = 0.2
    with distributed.setup(), start_run(Path(directory, "runs")):
        with others_wait():
            if distributed.rank() == where and end == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
        if distributed.rank() == where:
            raise ValueError("no data")
        dist.all_reduce(torch.ones(1))  # torch's own, as in DDP


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_the_record_names_the_first_cause(tmp_path: Path) -> None:
    """An error in the middle of torch's own collectives is told with its cause, rank and host."""
    errors = run_ranks(train_until, str(tmp_path), "raised", 2, world_size=3, group=False)
    cause = f"the first cause: rank 2 on {platform.node()}: ValueError: no data"
    recorded = json.loads((tmp_path / "runs/001/run.json").read_bytes())["sessions"][0]["error"]
    assert recorded.endswith(cause)
    assert all(str(error).endswith(cause) for error in errors[:2])


def test_a_killed_rank_is_the_first_cause(tmp_path: Path) -> None:
    """A rank that was killed in a collective of torch's own is named in the record."""
    with pytest.raises(EOFError):
        run_ranks(train_until, str(tmp_path), "killed", 1, group=False)
    recorded = json.loads((tmp_path / "runs/001/run.json").read_bytes())["sessions"][0]["error"]
    assert recorded.endswith(
        f"rank 1 on {platform.node()} ended without an error message: was it killed?"
    )


def told_of_rank_zero(directory: str) -> None:
    try:
        train_until(directory, "killed", 0)
    except RuntimeError as error:
        Path(directory, "told").write_text(str(error))


@pytest.mark.parametrize("hosts", ["True", ""])  # torchrun has the store; rank 0 has it
def test_rank_zero_killed_in_a_save(hosts: str, tmp_path: Path) -> None:
    """The others say that rank 0 has ended, also where it took the ranks' store with it."""
    env = {} if hosts else {"TORCHELASTIC_USE_AGENT_STORE": "", "MASTER_PORT": free_port()}
    with pytest.raises(EOFError):
        run_ranks(told_of_rank_zero, str(tmp_path), group=False, env=env)
    assert re.search("the first cause: rank 0.* ended", (tmp_path / "told").read_text())
