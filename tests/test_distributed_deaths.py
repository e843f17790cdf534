"""Ranks that are killed or stopped are named by those that wait for them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from batteries import Predictions, distributed
from batteries.distributed._agreement import agree
from batteries.distributed._groups import ANY_LEFT, notes
from batteries.distributed._messages import encode
from batteries.distributed._waiting import wait_until
from batteries.predictions._each_once import Form
from batteries.predictions._rows import Part


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
        (
            "is stopped",
            6.0,
            "rank 2 did not come (dead, suspended, or at another place of the program)",
        ),
    ],
)
def test_ranks_that_do_not_come(what: str, seconds: float, told: str, tmp_path: Path) -> None:
    """A rank that left is named at once, one that is stopped when the timeout ends, alone."""
    args = what, seconds, str(tmp_path)
    errors = run_ranks(wait_for_rank_two, *args, world_size=3, group=False)
    for error in errors[:2]:
        assert error.startswith("all_gather at test_distributed_deaths.py:")
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
        assert (
            "rank 2 did not come (dead, suspended, or at another place of the program)"
            in path.read_text()
        )


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
    with ThreadPoolExecutor(len(TRANSFERS)) as pool:  # each waits some seconds for a sign of life
        list(pool.map(lambda kind: name_the_killed(kind, tmp_path / kind), TRANSFERS))


def name_the_killed(kind: str, folder: Path) -> None:
    folder.mkdir()
    with pytest.raises(EOFError):  # from rank 2
        run_ranks(lose_rank_two, kind, str(folder), world_size=3, group=False)
    operation, _, only = kind.partition(" to ")
    for rank in ["0"] if only else ["0", "1"]:
        told = (folder / rank).read_text()
        assert told.startswith(operation.partition(",")[0])
        assert " at test_distributed_deaths.py:" in told
        assert told.endswith(
            "rank 2 did not come (dead, suspended, or at another place of the program)"
        )
