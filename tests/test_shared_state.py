"""What a program shares with the library: torch's defaults, and what else it may change."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import nn
from torch.utils.serialization import config

from batteries import (
    AverageMeter,
    CheckpointManager,
    Predictions,
    average_checkpoints,
    distributed,
    load_checkpoint,
    make_checkpoint,
    resume,
    rng_state,
    set_rng_state,
)
from batteries.blend import rank_average
from batteries.data import DataLoader
from batteries.training import StepPolicy

MODEL = nn.Linear(2, 1)


@pytest.fixture
def another_default_device() -> Iterator[None]:
    """As torch.set_default_device("cuda") does, the meta device shows tensors in a wrong place."""
    with torch.device("meta"):
        yield


@pytest.mark.usefixtures("another_default_device")
def test_checkpoints_ignore_the_default_device() -> None:
    """Saves, also in the background, loads and averages are the same with a default device."""
    weight = MODEL.weight.detach().clone()
    saved = make_checkpoint("train", 1, MODEL, half=weight.bfloat16())
    for background in (False, True):
        with CheckpointManager(f"{background}", background=background) as manager:
            manager.process(0.5, 1, saved)
        with torch.device("cpu"):
            model = nn.Linear(2, 1)
        assert resume(manager.logdir, model) is not None
        assert torch.equal(model.weight, weight)
        assert torch.equal(load_checkpoint(manager.best_path)["half"], weight.bfloat16())
        average = average_checkpoints([manager.best_path, manager.last_path])
        assert torch.equal(average["weight"], weight)


@pytest.mark.usefixtures("another_default_device")
def test_results_ignore_the_default_device() -> None:
    """Predictions, blends and decisions are the same with a default device."""
    outputs = Predictions(2)
    outputs.add([1, 0], score=torch.tensor([0.5, 0.25], device="cpu"), name=["b", "a"])
    score, name = outputs.gather()
    assert (score.tolist(), name) == ([0.25, 0.5], ["a", "b"])
    assert rank_average([[0.1, 0.3], [0.2, 0.4]]).tolist() == [0.5, 1.0]
    assert StepPolicy().accepts(1.0, torch.ones((), device="cpu"))


def test_checkpoints_ignore_the_default_of_mmap() -> None:
    """A program may let torch.load map files into memory: checkpoints are saved and read."""
    count = torch.ones(1, dtype=torch.uint16)
    patched: Any = config  # its type says nothing of patch
    with patched.patch("load.mmap", True), CheckpointManager("logs") as manager:
        manager.process(0.5, 1, make_checkpoint("train", 1, MODEL, rng=rng_state(), count=count))
        last = resume(manager.logdir, nn.Linear(2, 1))
        assert last is not None
        set_rng_state(last["rng"])


def with_a_default_device() -> list[object]:
    here = distributed.rank()
    torch.set_default_device("meta")
    try:
        outputs = Predictions(5)
        own = torch.arange(here, 5, 2, device="cpu")
        outputs.add(own, place=own, name=[str(each) for each in own.tolist()])
        meter = AverageMeter()
        meter.update(here)
        gathered = distributed.all_gather(own[: here + 1])
        place, name = outputs.gather()
        return [[each.tolist() for each in gathered], place.tolist(), name, meter.all_reduce()]
    finally:
        torch.set_default_device(None)


def test_ranks_ignore_the_default_device() -> None:
    """Ranks exchange values on the CPU, whatever the default device is."""
    expected = [[[0], [1, 3]], [0, 1, 2, 3, 4], ["0", "1", "2", "3", "4"], 0.5]
    assert run_ranks(with_a_default_device) == [expected, expected]


def test_making_a_loader_hides_one_warning() -> None:
    """Warnings of other threads are shown meanwhile: filters belong to the whole process."""
    seen = []

    def look(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "check_worker_number_rationality":
            seen.append(warnings.filters[0])

    sys.setprofile(look)
    try:
        DataLoader(range(2))  # type: ignore[arg-type]
    finally:
        sys.setprofile(None)
    assert seen
    assert all(action != "ignore" or message for action, message, *_ in seen)
