from __future__ import annotations

import gc
import sys
import threading
import weakref
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from torch import nn

from batteries import CheckpointManager, make_checkpoint
from batteries.checkpoint import read_checkpoint
from batteries.checkpoint._background import BackgroundWriter


def test_the_state_at_the_call() -> None:
    """What is written is the state at the call, whatever training does to it meanwhile."""
    model = nn.Linear(1000, 1000).requires_grad_(False)
    tied = model.weight.t()
    with CheckpointManager("logs", background=True) as checkpoints:
        for epoch in range(1, 6):
            model.weight.fill_(epoch)
            checkpoint = make_checkpoint("train", epoch, model, tied=tied, scores=[epoch])
            checkpoints.process(float(epoch), epoch, checkpoint)
            assert checkpoints.best_score == 1.0
            model.weight.fill_(-1)
            checkpoint["scores"].append("changed")
            checkpoints.wait()
            read = read_checkpoint(checkpoints.last_path)
            assert read["model_state_dict"]["weight"].eq(epoch).all()
            assert read["tied"].data_ptr() == read["model_state_dict"]["weight"].data_ptr()
            assert read["scores"] == [epoch]
    assert [row["epoch"] for row in CheckpointManager("logs").history] == [1, 2, 3, 4, 5]


def test_every_kind_of_tensor() -> None:
    """Sparse, conjugated, empty and learned tensors are copied as they are."""
    values: dict[str, Any] = {
        "sparse": torch.eye(3).to_sparse(),
        "complex": torch.randn(3, dtype=torch.complex64).conj(),
        "empty": torch.empty(0, 2),
        "learned": nn.Parameter(torch.ones(2)),
        "view": torch.arange(6.0).reshape(2, 3).t(),
    }
    with CheckpointManager("logs", background=True) as checkpoints:
        checkpoints.save_last({"model_state_dict": {}, **values})
    read = read_checkpoint("logs/last.pth")
    for name, value in values.items():
        assert type(read[name]) is type(value)
        torch.testing.assert_close(read[name], value, rtol=0, atol=0)


def test_memory_is_used_again() -> None:
    """Checkpoints of the same sizes are copied into the same two pieces of memory."""
    seen = set()
    with closing(BackgroundWriter()) as writer:
        for _ in range(6):
            writer.submit({"x": torch.zeros(1000)}, lambda copy: seen.add(copy["x"].data_ptr()))
            writer.wait()
    assert len(seen) <= 2


def test_one_in_flight_and_one_waiting() -> None:
    """The third checkpoint waits for the first, and says that training outruns the disk."""
    disk, written = threading.Event(), []

    def save(copy: Any) -> None:
        assert disk.wait(60)
        written.append(copy["x"].item())

    with closing(BackgroundWriter()) as writer:
        writer.submit({"x": torch.tensor(1)}, save)
        writer.submit({"x": torch.tensor(2)}, save)
        threading.Timer(0.2, disk.set).start()
        with pytest.warns(UserWarning, match="faster than they can be written"):
            writer.submit({"x": torch.tensor(3)}, save)
        assert written
    assert written == [1, 2, 3]


def test_errors_surface() -> None:
    """The error of a save is raised by the next call, once, and training can go on."""
    first, second, third = [make_checkpoint("train", n, nn.Linear(1, 1)) for n in (1, 2, 3)]
    with CheckpointManager("logs", background=True) as checkpoints:
        checkpoints.process(0.5, 1, first)
        checkpoints.wait()
        checkpoints.last_path.unlink()
        checkpoints.last_path.mkdir()  # in the way of the next save
        checkpoints.process(0.4, 2, second)
        with pytest.raises(OSError, match=r"last\.pth"):
            checkpoints.wait()
        checkpoints.last_path.rmdir()
        checkpoints.process(0.3, 3, third)
    assert read_checkpoint("logs/best.pth")["epoch"] == 3
    assert CheckpointManager("logs").best_score == 0.3


def test_refused_at_the_call() -> None:
    """What cannot be saved is refused by `process` itself."""
    with CheckpointManager("logs", background=True) as checkpoints:
        with pytest.raises(TypeError, match="cannot hold hook"):
            checkpoints.process(0.5, 1, {"model_state_dict": {}, "hook": print})
        assert checkpoints.history == []


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "raise ValueError", "del manager"])
def test_the_end_of_the_program(end: str) -> None:
    """However the program ends, what was processed is written, without a `close`."""
    program = f"""
import torch
from batteries import CheckpointManager, make_checkpoint
manager = CheckpointManager("logs", background=True)
for epoch in (1, 2):
    checkpoint = make_checkpoint("train", epoch, torch.nn.Linear(1000, 1000))
    manager.process(1 / epoch, epoch, checkpoint)
{end}
"""
    warm.run([sys.executable, "-c", program], timeout=120, capture_output=True)
    names = sorted(path.name for path in Path("logs").iterdir())
    assert names == ["best.pth", "exp_1.pth", "exp_2.pth", "last.pth", "metrics.json"]
    assert [row["epoch"] for row in CheckpointManager("logs").history] == [1, 2]


@pytest.mark.parametrize("waits", [False, True])
def test_dropped(waits: bool) -> None:
    """A manager that is dropped without `close` is written, and freed with its memory."""
    manager = CheckpointManager("logs", background=True)
    for epoch in (1, 2):
        manager.process(0.5, epoch, make_checkpoint("train", epoch, nn.Linear(1000, 1000)))
    if waits:
        manager.wait()
    assert manager._writer is not None
    thread = manager._writer._thread
    held = weakref.WeakSet[object]([manager, manager._writer, manager._writer._buffers])
    del manager
    gc.collect()
    thread.join(60)
    gc.collect()
    assert not thread.is_alive()
    assert len(held) == 0
    assert [row["epoch"] for row in CheckpointManager("logs").history] == [1, 2]


@pytest.mark.parametrize("end", ["", "del manager"])
def test_the_last_error(end: str) -> None:
    """The last error is told, and a manager that is dropped after it goes, with its thread."""
    program = f"""
import pathlib, weakref
from batteries import CheckpointManager
manager = CheckpointManager("logs", background=True)
pathlib.Path("logs/last.pth").mkdir(parents=True)  # in the way
thread = manager._writer._thread
held = [weakref.ref(part) for part in (manager, manager._writer, manager._writer._buffers)]
manager.save_last({{"epoch": 1}})
{end}
{end and "thread.join(60)"}
print(thread.is_alive(), [part() for part in held])
"""
    ended = warm.run([sys.executable, "-c", program], timeout=120, capture_output=True)
    assert not end or ended.stdout == b"False [None, None, None]\n"
    assert b"IsADirectoryError" in ended.stderr
    assert b"last.pth" in ended.stderr


def test_close_twice() -> None:
    """Closing again does nothing, and leaves no thread."""
    checkpoints = CheckpointManager("logs", background=True)
    checkpoints.close()
    checkpoints.close()
    assert "checkpoints" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.gpu
def test_copies_from_a_gpu() -> None:
    """From a GPU too, the state at the call is written while training goes on in place."""
    weight = torch.zeros(4096, 4096, device="cuda")
    with CheckpointManager("logs", background=True) as checkpoints:
        for epoch in range(1, 4):
            weight.fill_(epoch)
            checkpoints.process(0.5, epoch, {"model_state_dict": {"weight": weight}})
            weight.fill_(-1)
            checkpoints.wait()
            read = read_checkpoint(checkpoints.last_path)
            assert read["model_state_dict"]["weight"].eq(epoch).all()


@pytest.mark.gpu
def test_copies_from_several_gpus() -> None:
    """From each GPU the state at the call is written, whichever is the current one."""
    count = torch.cuda.device_count()
    if count < 2:
        pytest.skip("needs two GPUs")
    model = {str(i): torch.zeros(4096, 4096, device=f"cuda:{i}") for i in range(count)}
    model["cpu"] = torch.zeros(1000)
    with CheckpointManager("logs", background=True) as checkpoints:
        for epoch in range(1, 4):
            for i in range(count):
                with torch.cuda.device(i):
                    torch.cuda._sleep(10**8)  # type: ignore[no-untyped-call]  # what comes after it is late
            for weight in model.values():
                weight.fill_(epoch)
            checkpoints.process(0.5, epoch, {"model_state_dict": model})
            for weight in model.values():
                weight.fill_(-1)
            checkpoints.wait()
            read = read_checkpoint(checkpoints.last_path)["model_state_dict"]
            assert all(read[name].eq(epoch).all() for name in model)


def test_memory_that_begins_alike() -> None:
    """Tensors over memory that begins at one address and ends at different ones stay whole."""
    numbers = np.arange(10.0)
    with CheckpointManager("logs", background=True) as manager:
        part, whole = torch.from_numpy(numbers[:5]), torch.from_numpy(numbers)
        manager.save_last({"part": part, "whole": whole})
    found = torch.load("logs/last.pth")
    assert found["whole"].tolist() == list(range(10))
    assert found["part"].tolist() == list(range(5))


def test_saves_after_the_end() -> None:
    """A save after `close` is an error, and not lost without a word."""
    manager = CheckpointManager("logs", background=True)
    manager.close()
    with pytest.raises(RuntimeError, match="the manager is closed and saves no more"):
        manager.save_last({"epoch": 1})
