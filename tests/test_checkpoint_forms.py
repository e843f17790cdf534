"""Checkpoints in other forms than our own file."""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import warm
from torch import nn

from batteries import (
    EMA,
    CheckpointError,
    CheckpointManager,
    average_checkpoints,
    load_checkpoint,
    make_checkpoint,
    save_checkpoint,
)
from batteries.averaging import greedy_soup
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


class WithExtra(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"scale": 1.0}

    def set_extra_state(self, state: Any) -> None:
        pass


def test_what_safetensors_cannot_hold() -> None:
    """The export names a value among the weights that is no tensor."""
    save_checkpoint(make_checkpoint("train", 1, WithExtra(2, 1)), "a.pth")
    with pytest.raises(CheckpointError, match=r"\['_extra_state'\] in a\.pth is a dict, but .safe"):
        export_safetensors("a.pth", "a.safetensors")


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


def weights(value: float) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(v, value) for name, v in nn.Linear(2, 1).state_dict().items()}


def under(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ({"state_dict": under("module.", weights(1)), "epoch": 3, "arch": "a"}, {}),  # imagenet
        ({"state_dict": under("net.", weights(1)), "optimizer_states": []}, {"prefix": "net."}),
        ({"state_dict": weights(0), "state_dict_ema": weights(1)}, {"key": "ema"}),  # timm
        ({"model": under("_orig_mod.", weights(1)), "iter_num": 7, "config": {}}, {}),  # nanoGPT
        (
            {  # torchvision's references
                "model": weights(0),
                "model_ema": {"n_averaged": torch.tensor(1), **under("module.", weights(1))},
            },
            {"key": "ema"},
        ),
        ({"generator": weights(1), "discriminator": weights(0)}, {"key": "generator"}),
    ],
)
def test_checkpoints_of_others(content: dict[str, Any], options: dict[str, Any]) -> None:
    """What other programs save loads into the model: all names of the weights are known."""
    torch.save(content, "theirs.pth")
    model = nn.Linear(2, 1)
    loaded = load_checkpoint("theirs.pth", model, **options)
    torch.testing.assert_close(dict(model.state_dict()), weights(1), rtol=0, atol=0)
    assert set(loaded) == set(content)
    assert loaded.report.loaded == ["model.weight", "model.bias"]


def test_all_of_another_program() -> None:
    """Optimizers and schedulers of others load too; wrappers inside of a model do not matter."""
    model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    inside = nn.Sequential(nn.DataParallel(model[0]), nn.DataParallel(model[1]))
    optimizer = torch.optim.SGD(inside.parameters(), 0.5, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.step()
    scheduler.step()
    parts: dict[str, Any] = {"model": inside, "optimizer": optimizer, "lr_scheduler": scheduler}
    torch.save({name: part.state_dict() for name, part in parts.items()}, "theirs.pth")
    other = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    optimizer = torch.optim.SGD(other.parameters(), 7)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    load_checkpoint("theirs.pth", other, optimizer, scheduler)
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert (optimizer.param_groups[0]["lr"], scheduler.last_epoch) == (0.05, 1)


def test_remedies_for_files_of_others() -> None:
    """A file that does not load as it is names the option or the call that it needs."""
    model = nn.Linear(2, 1)
    torch.save({"generator": weights(1)}, "a.pth")
    with pytest.raises(CheckpointError, match=r'it has generator; pass key="..."'):
        load_checkpoint("a.pth", model)
    torch.save({"state_dict": under("net.", weights(1))}, "a.pth")
    with pytest.raises(CheckpointError, match=r"names begin with 'net\.': pass prefix='net\.'"):
        load_checkpoint("a.pth", model)
    torch.save({"model": weights(1), "args": argparse.Namespace(lr=1)}, "a.pth")
    with pytest.raises(CheckpointError, match=r"add_safe_globals\(\[argparse\.Namespace\]\)"):
        load_checkpoint("a.pth", model)


@pytest.mark.parametrize(
    "prefix", ["module.net.", "_orig_mod.net.", "net._orig_mod.", "net.module."]
)
def test_wrappers_around_a_prefix(prefix: str) -> None:
    """A prefix is found inside of the wrappers of a whole program's model, too."""
    torch.save({"state_dict": {**under(prefix, weights(1)), "loss.weight": torch.ones(3)}}, "a.pth")
    model = nn.Linear(2, 1)
    load_checkpoint("a.pth", model, prefix="net.")
    torch.testing.assert_close(dict(model.state_dict()), weights(1), rtol=0, atol=0)


@pytest.mark.parametrize("first", [True, False])
def test_two_tensors_for_one(first: bool) -> None:
    """A file with two tensors for one of the model is refused: one of them would be lost."""
    parts = [weights(1), under("module.", weights(0))]
    torch.save({"model": {**parts[first], **parts[not first]}}, "a.pth")
    with pytest.raises(CheckpointError, match=r"'module\.weight'\] is not in the model"):
        load_checkpoint("a.pth", nn.Linear(2, 1))
    load_checkpoint("a.pth", model := nn.Linear(2, 1), strict=False)
    torch.testing.assert_close(dict(model.state_dict()), weights(1), rtol=0, atol=0)
    untied = {name: value + int(name[0]) for name, value in tied().state_dict().items()}
    torch.save({"model": untied}, "a.pth")
    with pytest.raises(CheckpointError, match=r"'0.weight' and '1.weight' are one tensor in the m"):
        load_checkpoint("a.pth", tied())


@pytest.mark.parametrize("strict", [True, False])
def test_a_prefix_that_no_name_has(strict: bool) -> None:
    """A slip in a prefix is told: a model with its first weights would be taken for loaded."""
    torch.save({"state_dict": under("net.", weights(1))}, "a.pth")
    with pytest.raises(CheckpointError, match=r"begins with prefix='nte\.'; it has net\.weight"):
        load_checkpoint("a.pth", nn.Linear(2, 1), prefix="nte.", strict=strict)


def test_numbers_too_large_for_a_dtype() -> None:
    """Weights that would become infinite in float16 are refused; infinities may be meant."""
    torch.save({"model": {**weights(1), "bias": torch.tensor([-math.inf])}}, "a.pth")
    load_checkpoint("a.pth", model := nn.Linear(2, 1).half())
    assert model.bias.item() == -math.inf
    torch.save({"model": weights(1e5)}, "a.pth")
    with pytest.raises(
        CheckpointError, match=r"'weight'\] has numbers in a.pth that are too large"
    ):
        load_checkpoint("a.pth", model)
    load_checkpoint("a.pth", nn.Linear(2, 1).bfloat16())
    masked: Any = nn.Linear(2, 1)
    masked.register_buffer("mask", torch.tensor([-1e9, 0]))
    torch.save({"model": masked.state_dict()}, "a.pth")
    load_checkpoint("a.pth", masked.half())
    assert masked.mask.tolist() == [-math.inf, 0]


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (torch.tensor([2**40]), torch.int32),
        (torch.tensor([-3], dtype=torch.int8), torch.uint8),
        (torch.tensor([2]), torch.bool),
        (torch.tensor([1e300], dtype=torch.float64), torch.float32),
        (torch.tensor([1e5]), torch.float8_e4m3fn),
    ],
)
def test_numbers_that_a_dtype_does_not_have(value: torch.Tensor, dtype: torch.dtype) -> None:
    """Integers that would wrap around, and floats without a finite value, are refused."""
    model: Any = nn.Module()
    model.register_buffer("x", torch.zeros(1).to(dtype))
    torch.save({"model": {"x": value}}, "a.pth")
    with pytest.raises(CheckpointError, match=r"'x'\] has numbers in a.pth that are too large"):
        load_checkpoint("a.pth", model)
    torch.save({"model": {"x": torch.ones_like(value)}}, "a.pth")
    load_checkpoint("a.pth", model)
    assert model.x.item() == 1


def test_numbers_of_numpy() -> None:
    """The error names all that a file with numpy's numbers needs, at once."""
    best = {"best": np.float64(0.5), "epoch": np.int64(3), "curve": np.ones(2), "ok": np.bool_(1)}
    torch.save({"model": weights(1), **best}, "a.pth")
    with pytest.raises(CheckpointError, match="add_safe_globals") as caught:
        load_checkpoint("a.pth", nn.Linear(2, 1))
    told = re.search(r"add_safe_globals\((.*)\) first", str(caught.value))
    assert told is not None
    with torch.serialization.safe_globals(eval(told[1], {"numpy": np})):
        loaded = load_checkpoint("a.pth", nn.Linear(2, 1))
    assert (loaded["best"], loaded["epoch"], loaded["curve"].tolist()) == (0.5, 3, [1, 1])


def test_protocols_that_torch_refuses() -> None:
    """A file with a newer pickle protocol is not called damaged, and the remedy works."""
    torch.save({"model": weights(1)}, "a.pth", pickle_protocol=4)
    with pytest.raises(CheckpointError, match="may have been written with pickle_protocol=4 or 5"):
        load_checkpoint("a.pth", nn.Linear(2, 1))
    torch.save(torch.load("a.pth", weights_only=False), "a.pth")
    load_checkpoint("a.pth", nn.Linear(2, 1))


def test_sharded_pickles() -> None:
    """The Hub's older index, of files that torch.save wrote, is read in the same way."""
    state, places = weights(1), {}
    for number, (name, value) in enumerate(state.items()):
        places[name] = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: value}, places[name])
    Path("pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    load_checkpoint("pytorch_model.bin.index.json", model := nn.Linear(2, 1))
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)


def test_sharded_safetensors() -> None:
    """The Hub's index is read with the files beside it; what is missing or elsewhere is told."""
    model, places = tied(), {}
    Path("hub").mkdir()
    for number, (name, value) in enumerate(model.state_dict().items()):
        places[name] = f"model-0000{number}-of-00007.safetensors"
        safetensors.torch.save_file({name: value}, f"hub/{places[name]}")
    path = Path("hub/model.safetensors.index.json")
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    other = tied()
    load_checkpoint(path, other)
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert peek(path)["model_state_dict"]["0.weight"].shape == (3, 3)
    Path("hub", places["0.bias"]).unlink()
    with pytest.raises(CheckpointError, match=r"is incomplete: hub/model-0000\d-of.* is missing"):
        load_checkpoint(path, other)
    wrong: list[Any] = [{"w": "../a.safetensors"}, {"w": "a.pth"}, {"w": 1}, []]
    for bad in wrong:
        path.write_text(json.dumps({"weight_map": bad}))
        with pytest.raises(CheckpointError, match="is not an index of"):
            load_checkpoint(path, other)


def test_shards_are_weights_too() -> None:
    """A sharded checkpoint is exported and averaged as a file is, the averaged model of it too."""
    manager, paths = CheckpointManager("runs", sharded=True), []
    for epoch in (1, 2):
        model = tied().bfloat16()
        ema = EMA(model, 0.5)
        nn.init.constant_(model.get_parameter("0.weight"), epoch)
        ema.update(model)
        checkpoint = make_checkpoint("train", epoch, model, ema=ema)
        manager.process(0.5, epoch, checkpoint)
        save_checkpoint(checkpoint, f"{epoch}.pth")
        paths.append(Path(f"runs/exp_{epoch}.dcp"))
    expected = average_checkpoints(["1.pth", "2.pth"])
    for files in (paths, [paths[0], Path("2.pth")]):
        state = average_checkpoints(files)
        torch.testing.assert_close(state, expected, rtol=0, atol=0)
    soup = greedy_soup(paths, lambda s: float(s["0.weight"][0, 0]), metric_minimization=True)
    torch.testing.assert_close(soup.state, average_checkpoints(["1.pth"]), rtol=0, atol=0)
    for key, weights in (("model", model), ("ema", ema.module)):
        for path in (paths[1], Path("2.pth")):
            export_safetensors(path, "a.safetensors", key=key)
            found = safetensors.torch.load_file("a.safetensors")
            torch.testing.assert_close(found, dict(weights.state_dict()), rtol=0, atol=0)
