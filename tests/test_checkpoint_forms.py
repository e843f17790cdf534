"""Checkpoints in other forms than our own file."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import warm
from torch import nn

from batteries import CheckpointError, load_checkpoint, make_checkpoint, save_checkpoint
from batteries.checkpoint import export_safetensors, peek, read_checkpoint


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[1].weight = model[0].weight
    return model


def test_safetensors_come_back() -> None:
    """Exported weights load into a model like any checkpoint, tied ones and buffers too."""
    model, other = tied(), tied()
    save_checkpoint(make_checkpoint("train", 1, model), "best.pth")
    export_safetensors("best.pth", "best.safetensors")
    assert list(load_checkpoint("best.safetensors", other)) == ["model_state_dict"]
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_others_read_them() -> None:
    """The safetensors library reads what was exported: names, dtypes, shapes, values, format."""
    state = {"a": torch.ones(2, 3).t(), "b": torch.tensor(3), "c": torch.ones(2).bfloat16()}
    save_checkpoint({"model_state_dict": state}, "best.pth")
    export_safetensors("best.pth", "best.safetensors")
    found = safetensors.torch.load_file("best.safetensors")
    for name, value in state.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
    with safetensors.safe_open("best.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_weights_of_others() -> None:
    """What the safetensors library writes loads, and `peek` has its shapes."""
    model = nn.Linear(3, 2)
    safetensors.torch.save_file(nn.Linear(3, 2).state_dict(), "theirs.safetensors")
    load_checkpoint("theirs.safetensors", model)
    assert torch.equal(model.weight, safetensors.torch.load_file("theirs.safetensors")["weight"])
    weight = peek("theirs.safetensors")["model_state_dict"]["weight"]
    assert (weight.device.type, weight.shape) == ("meta", (2, 3))


def test_damaged_safetensors() -> None:
    """A truncated file, or one with a damaged header, is refused with its name."""
    safetensors.torch.save_file(nn.Linear(3, 2).state_dict(), "a.safetensors")
    good, chance = Path("a.safetensors").read_bytes(), random.Random(0)
    for length in [0, 4, *(chance.randrange(len(good)) for _ in range(20))]:
        Path("a.safetensors").write_bytes(good[:length])
        for read in (read_checkpoint, peek):
            with pytest.raises(CheckpointError, match=r"a\.safetensors cannot be read as safetens"):
                read("a.safetensors")


def test_nothing_to_export() -> None:
    """A checkpoint without weights is refused, and no file appears."""
    save_checkpoint({"epoch": 1}, "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth has no weights to export.*it has epoch"):
        export_safetensors("a.pth", "a.safetensors")
    assert not Path("a.safetensors").exists()


def test_without_the_package() -> None:
    """Where safetensors is not installed, the error says how to install it."""
    program = """
import sys
sys.modules["safetensors"] = None
from batteries.checkpoint import read_checkpoint
open("a.safetensors", "w").close()
read_checkpoint("a.safetensors")
"""
    done = warm.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "needs safetensors, which is not installed: pip install safetensors" in done.stderr
