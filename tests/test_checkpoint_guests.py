"""Files and objects of other libraries, by stand-ins that keep to their protocols."""

from __future__ import annotations

import importlib
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from safetensors.torch import save_file
from torch import Tensor, nn

from batteries import (
    CheckpointError,
    CheckpointManager,
    distributed,
    load_checkpoint,
    make_checkpoint,
    resume,
    save_checkpoint,
)
from batteries.checkpoint import peek


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.lm_head = nn.Linear(3, 5, bias=False)
        self.lm_head.weight = self.embedding.weight


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tied_weights_written_once(device: str) -> None:
    """A name whose tensor the module ties to one in the file is not missing."""
    saved = LanguageModel()
    save_file({"embedding.weight": saved.embedding.weight.detach()}, "model.safetensors")
    with torch.device(device):
        model = LanguageModel()
    load_checkpoint("model.safetensors", model)
    assert model.lm_head.weight is model.embedding.weight
    assert torch.equal(model.lm_head.weight, saved.lm_head.weight)
    report = load_checkpoint("model.safetensors", model, strict=False).report
    assert (report.missing, len(report.loaded)) == ([], 2)
    untied = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "lm_head": nn.Linear(3, 5)})
    with pytest.raises(CheckpointError, match=r"model_state_dict\['lm_head.weight'\] is not in"):
        load_checkpoint("model.safetensors", untied)


class Observer(nn.Module):
    """As those of quantisation: its buffers get the shape of what it has seen, or loads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("min_val", torch.tensor([]))
        self.scale = nn.Parameter(torch.zeros(()))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        if f"{prefix}min_val" in state_dict:
            self.min_val: Tensor = torch.empty_like(state_dict[f"{prefix}min_val"])
        super()._load_from_state_dict(state_dict, prefix, *rest)


def test_modules_that_take_other_shapes() -> None:
    """A module that loads a state of another shape itself may do so; others are refused."""
    saved, model = nn.Sequential(Observer()), nn.Sequential(Observer())
    saved[0].min_val = torch.tensor([1.0, 2.0])
    save_checkpoint(make_checkpoint("train", 1, saved), "a.pth")
    load_checkpoint("a.pth", model)
    assert torch.equal(model.state_dict()["0.min_val"], torch.tensor([1.0, 2.0]))
    saved[0].scale = nn.Parameter(torch.ones(2))  # torch itself would take the first number
    save_checkpoint(make_checkpoint("train", 1, saved), "a.pth")
    with pytest.raises(CheckpointError, match=r"scale'\] is \(2,\) in a.pth but \(\) in the model"):
        load_checkpoint("a.pth", model)


def test_nothing_fits() -> None:
    """Loading nothing is an error, also with `strict=False`; names of both sides are in it."""
    adapter = {"model_state_dict": {"base_model.lora_A.weight": torch.zeros(2)}}
    save_checkpoint(adapter, "adapter.pth")
    with pytest.raises(CheckpointError, match=r"the file has base_model.lora_A.weight.*weight, bi"):
        load_checkpoint("adapter.pth", nn.Linear(1, 1), strict=False)


class Packed(Tensor):
    """A tensor of bytes and a scale that looks like one of floats, as quantised states do."""

    codes: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor) -> Packed:
        shape, kind = codes.shape, scale.dtype
        made: Packed = Tensor._make_wrapper_subclass(cls, shape, dtype=kind)
        made.codes, made.scale = codes, scale
        return made

    def __tensor_flatten__(self) -> tuple[list[str], list[Any]]:
        return ["codes", "scale"], []

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], *_: Any) -> Packed:
        return Packed(**parts)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is not torch.ops.aten.detach.default:
            raise NotImplementedError(function)
        return Packed(args[0].codes, args[0].scale)


def test_what_torch_was_told_to_load() -> None:
    """What is registered with torch is saved and loaded; the same is refused where it is not."""
    state = {"big": Packed(torch.arange(200, dtype=torch.uint8), torch.tensor(0.5))}
    for folder, background in (("a", False), ("b", True)):
        with (
            CheckpointManager(
                folder, metric="m", metric_minimization=True, background=background
            ) as (manager),
            torch.serialization.safe_globals([Packed]),
        ):
            manager.process(0.5, 1, {**make_checkpoint("train", 1, nn.Linear(1, 1)), "more": state})
            manager.close()
            loaded, plain = load_checkpoint(f"{folder}/last.pth"), torch.load(f"{folder}/last.pth")
            assert peek(f"{folder}/last.pth")["epoch"] == 1
        for found in (loaded, plain):
            assert torch.equal(found["more"]["big"].codes, state["big"].codes)
        with pytest.raises(CheckpointError, match=r"cannot be read .*Packed"):
            load_checkpoint(f"{folder}/last.pth")
    with pytest.raises(TypeError, match=r"cannot hold more.big, a test_\w+.Packed: torch.load wou"):
        save_checkpoint({"more": state}, "c.pth")


def test_what_torch_cannot_load_even_so() -> None:
    """A deque that is registered with torch is refused: torch would not read it back."""
    with (
        torch.serialization.safe_globals([deque]),
        pytest.raises(TypeError, match=r"cannot hold optimizer.queue, a collections.deque"),
    ):
        save_checkpoint({"optimizer": {"queue": deque([1, 2], maxlen=3)}}, "last.pth")
    assert not Path("last.pth").exists()


def train_with_zero(directory: str) -> bool:
    optim: Any = importlib.import_module("torch.distributed.optim")  # it warns of torch.jit

    def make() -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
        return model, optim.ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=0.1)

    def train(model: nn.Module, optimizer: Any) -> None:
        model(torch.ones(2, 4)).square().mean().backward()  # the same on both ranks
        optimizer.step()
        optimizer.zero_grad()

    whole, resumed = make(), make()
    train(*whole)
    whole[1].consolidate_state_dict(0)
    if distributed.is_main():
        save_checkpoint(make_checkpoint("train", 1, *whole), Path(directory, "last.pth"))
    distributed.barrier()
    train(*whole)
    assert resume(directory, *resumed) is not None
    train(*resumed)
    states = [part.state_dict() for part in (whole[0], resumed[0])]
    return all(value.equal(states[1][name]) for name, value in states[0].items())


def test_an_optimizer_that_is_divided_among_ranks(tmp_path: Path) -> None:
    """ZeroRedundancyOptimizer is saved after it was consolidated, and resumes without that."""
    assert run_ranks(train_with_zero, str(tmp_path)) == [True, True]
