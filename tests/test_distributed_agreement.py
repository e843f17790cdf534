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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from warm import context

from batteries import Predictions, distributed, start_run
from batteries.distributed import _joining, _rank_zero
from batteries.distributed._agreement import Transfer, agree
from batteries.distributed._groups import ANY_LEFT, notes
from batteries.distributed._messages import encode
from batteries.distributed._rank_zero import others_wait
from batteries.distributed._waiting import Notes, StoreGoneError, wait_until
from batteries.predictions._parts import Part
from batteries.predictions._result import Form

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


def wait_for_rank_two(what: str, seconds: float, directory: str) -> str:
    with distributed.setup(timeout=timedelta(seconds=seconds)):
        distributed.barrier()
        rank, folder = distributed.rank(), Path(directory)
        if rank == 2:
            if what == "raises":
                raise ValueError("no data")
            if what == "is stopped":
                (folder / "pid").write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGSTOP)
            return ""
        time.sleep(0.7 * rank)  # rank 1 is late, not absent
        try:
            distributed.all_gather(1)
        except RuntimeError as error:
            (folder / f"over-{rank}").touch()
            while what == "is stopped" and len(list(folder.glob("over-*"))) < 2:
                time.sleep(0.01)
            if what == "is stopped" and rank == 0:
                os.kill(int((folder / "pid").read_text()), signal.SIGCONT)
            return str(error)
    return ""


@pytest.mark.parametrize(
    ("what", "seconds", "told"),
    [
        ("raises", 1000.0, "rank 2 has left: ValueError: no data"),
        ("ends", 1000.0, "rank 2 has left: it came to its end"),
        ("is stopped", 6.0, "rank 2 did not come (dead, stopped, or elsewhere)"),
    ],
)
def test_ranks_that_do_not_come(what: str, seconds: float, told: str, tmp_path: Path) -> None:
    """A rank that left is named at once, one that is stopped when the timeout ends, alone."""
    args = what, seconds, str(tmp_path)
    errors = run_ranks(wait_for_rank_two, *args, world_size=3, group=False)
    for error in errors[:2]:
        assert error.startswith("all_gather at test_distributed_agreement.py:")
        assert error.endswith(f"failed: {told}")


def kill_rank_two(directory: str) -> None:
    with distributed.setup():
        rank, store = distributed.rank(), notes()
        if rank == 2:
            store.set("pid", str(os.getpid()))
        if rank == 1:
            store.set(ANY_LEFT, "")  # one has failed elsewhere: the others say that they wait
            assert wait_until(lambda: store.check(["waits/0/2"]), 100)
            os.kill(int(store.get("pid") or 0), signal.SIGKILL)
        try:
            distributed.barrier()  # to which rank 2 may have done its part
            distributed.barrier()
        except RuntimeError as error:
            Path(directory, str(rank)).write_text(str(error))
            raise


def test_killed_while_it_waits(tmp_path: Path) -> None:
    """A rank that has said that it waits, and was killed then, is named."""
    with pytest.raises(EOFError):  # from rank 2
        run_ranks(kill_rank_two, str(tmp_path), world_size=3, group=False)
    for path in (tmp_path / "0", tmp_path / "1"):
        assert "rank 2 did not come (dead, stopped, or elsewhere)" in path.read_text()


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


DATA = torch.zeros(2**20)


def gather_predictions(dst: int | None) -> object:
    outputs = Predictions(3 * len(DATA))
    outputs.add(range(distributed.rank(), 3 * len(DATA), 3), value=DATA)
    return outputs.gather(dst)


def agree_on_predictions(dst: int | None) -> object:
    form, indices = Form("value", "float32", ()), range(2, 3 * len(DATA), 3)
    own = Part.of((3 * len(DATA), False, dst), [form], indices, [DATA])
    return distributed.all_gather(own, check=False)


# What is sent, and its beginning: the ranks have agreed, and nothing has followed.
TRANSFERS: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "all_gather": (
        lambda: distributed.all_gather(DATA),
        lambda: agree("all_gather", encode(DATA)[0], check=False),
    ),
    "all_gather, ragged": (
        lambda: distributed.all_gather(DATA[distributed.rank() :]),
        lambda: agree("all_gather", encode(DATA[2:])[0], check=False),
    ),
    "broadcast": (
        lambda: distributed.broadcast(None, src=2),
        lambda: agree("broadcast from rank 2", encode(DATA)[0], check=False, src=2),
    ),
    "all_reduce": (
        lambda: distributed.all_reduce(DATA),
        lambda: agree("all_reduce(sum) of float32 (1048576,)", encode(None)[0], check=False),
    ),
    "Predictions.gather": (lambda: gather_predictions(None), lambda: agree_on_predictions(None)),
    "Predictions.gather to 0": (lambda: gather_predictions(0), lambda: agree_on_predictions(0)),
}


def lose_rank_two(kind: str, directory: str) -> None:
    whole, beginning = TRANSFERS[kind]
    with distributed.setup():
        if distributed.rank() == 2:
            beginning()
            os.kill(os.getpid(), signal.SIGKILL)
        notes().set(ANY_LEFT, "")  # one has failed elsewhere: the others say that they wait
        # That it said so is no sign of life later.
        assert wait_until(lambda: notes().check(["waits/0/2"]), 100)
        try:
            whole()
        except RuntimeError as error:
            Path(directory, str(distributed.rank())).write_text(str(error))
            raise


def test_killed_in_the_middle(tmp_path: Path) -> None:
    """A rank that is killed while data is on its way is named by those that need it."""
    with ThreadPoolExecutor(3) as pool:  # each waits some seconds for a sign of life
        list(pool.map(lambda kind: name_the_killed(kind, tmp_path / kind), TRANSFERS))


def name_the_killed(kind: str, folder: Path) -> None:
    folder.mkdir()
    with pytest.raises(EOFError):  # from rank 2
        run_ranks(lose_rank_two, kind, str(folder), world_size=3, group=False)
    operation, _, only = kind.partition(" to ")
    for rank in ["0"] if only else ["0", "1"]:
        told = (folder / rank).read_text()
        assert told.startswith(operation.partition(",")[0])
        assert " at test_distributed_agreement.py:" in told
        assert told.endswith("rank 2 did not come (dead, stopped, or elsewhere)")


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
