"""Ranks that do not do the same are told so, and ranks that do not come are named."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from batteries import distributed

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
