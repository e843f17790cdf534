"""Of a checkpoint only what was asked for is read into memory, and all of it is verified."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from ranks import run_ranks
from torch import Tensor, nn

from batteries import (
    EMA,
    CheckpointError,
    CheckpointManager,
    distributed,
    load_checkpoint,
    make_checkpoint,
    resume,
    save_checkpoint,
)


def trained(width: int = 1024) -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(width, width)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, width)).sum().backward()
    optimizer.step()
    return model, optimizer


def saved(path: str, form: str) -> nn.Linear:
    model, optimizer = trained()
    checkpoint = make_checkpoint("train", 1, model, optimizer, seen=torch.arange(3))
    if form == "torch.save":
        torch.save(checkpoint, path)
    elif form == "dcp":
        CheckpointManager("logs", sharded=True).process(0.5, epoch=1, checkpoint=checkpoint)
        Path(path).symlink_to("logs/last.dcp")
    else:
        save_checkpoint(checkpoint, path)
    return model


def moments(checkpoint: Any) -> list[Tensor]:
    return [state["exp_avg"] for state in checkpoint["optimizer_state_dict"]["state"].values()]


@pytest.mark.parametrize("form", ["ours", "torch.save", "dcp"])
def test_only_what_was_asked_for(form: str) -> None:
    """States without an object are on the meta device; the object's, and plain tensors, are not."""
    model = saved("a", form)
    other, optimizer = nn.Linear(1024, 1024), torch.optim.AdamW(nn.Linear(1024, 1024).parameters())
    loaded = load_checkpoint("a", other)
    assert torch.equal(other.weight, model.weight)
    assert loaded["seen"].tolist() == [0, 1, 2]
    assert all(moment.is_meta for moment in moments(loaded))
    with pytest.raises(NotImplementedError, match="meta tensor"):
        optimizer.load_state_dict(loaded["optimizer_state_dict"])
    assert not any(moment.is_meta for moment in moments(load_checkpoint("a", other, optimizer)))
    assert not any(moment.is_meta for moment in moments(load_checkpoint("a")))


@pytest.mark.parametrize("form", ["ours", "torch.save", "dcp"])
def test_all_is_verified(form: str) -> None:
    """Damage in a state that nobody asked for is found before an object changes."""
    saved("a", form)
    model = nn.Linear(1024, 1024)
    before = model.weight.clone()
    shard = next(Path("logs/shards").glob("*/*.distcp")) if form == "dcp" else Path("a")
    data = bytearray(shard.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint("a", model)
    assert torch.equal(model.weight, before)


def test_another_file_of_the_name() -> None:
    """What was loaded stays what it was when the file is written over in its place."""
    model = saved("a.pth", "ours")
    loaded = load_checkpoint("a.pth")
    with Path("a.pth").open("r+b") as file:
        file.write(bytes(Path("a.pth").stat().st_size))
    assert torch.equal(loaded["model_state_dict"]["weight"], model.weight)


PEAK = """
import sys
from importlib.metadata import version
import torch
from pathlib import Path
from batteries import load_checkpoint
from batteries.checkpoint import export_safetensors

def status(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) / 1024

model = torch.nn.Linear(2048, 2048)
load_checkpoint("small.pth")
export_safetensors("small.pth", "small.safetensors")  # libraries that are read when first used
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
load_checkpoint("large.pth", model) if sys.argv[1] == "load" else export_safetensors(
    "large.pth", "out.safetensors", key="ema"
)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc how much memory was taken")
@pytest.mark.parametrize(("what", "most"), [("load", 30), ("export", 80)])
def test_memory(what: str, most: int) -> None:
    """The model out of a file of 80 MiB takes the 16 MiB that it has, and little more."""
    model, optimizer = trained(2048)
    save_checkpoint(make_checkpoint("train", 1, nn.Linear(2, 1)), "small.pth")
    checkpoint = make_checkpoint("train", 1, model, optimizer, ema=EMA(model))
    save_checkpoint(checkpoint | {"rest": {"more_state_dict": 0}}, "large.pth")
    program = [sys.executable, "-c", PEAK, what]
    told = warm.run(program, capture_output=True, text=True, check=True).stdout
    copied = what == "export" and tuple(map(int, version("safetensors").split(".")[:2])) < (0, 8)
    assert float(told) < most + 16 * copied  # MiB that older releases of safetensors copy once more


def resumed(directory: str, function: str) -> tuple[float, str, bool]:
    """MiB that this rank has read, what it was told, and whether its model is another one."""
    os.chdir(directory)
    model = nn.Linear(1024, 1024)
    before = model.weight.clone()
    distributed.barrier()
    read = int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])
    text = ""
    try:
        if function == "resume":
            resume("logs", model)
        else:
            load_checkpoint("logs/last.pth", model, together=True)
    except CheckpointError as error:
        text = str(error)
    read = int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0]) - read
    return read / 2**20, text, not torch.equal(model.weight, before)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc how much was read")
@pytest.mark.filterwarnings("ignore:.*resume got no optimizer=", "ignore:.*an older one is taken")
@pytest.mark.parametrize("function", ["resume", "load_checkpoint"])
def test_ranks_divide_the_work(function: str, tmp_path: Path) -> None:
    """Each of three ranks reads its model and a third of the rest; damage is told to all."""
    model, optimizer = trained()
    (tmp_path / "logs").mkdir()
    path = tmp_path / "logs/last.pth"
    save_checkpoint(make_checkpoint("train", 1, model, optimizer), path)  # 4 + 8 MiB
    told = run_ranks(resumed, str(tmp_path), function, world_size=3)
    assert all(text == "" and changed for _, text, changed in told)
    assert max(read for read, _, _ in told) < 4 + 8 / 3 + 2
    data = bytearray(path.read_bytes())
    data[len(data) * 9 // 10] ^= 1
    path.write_bytes(data)
    for _, text, changed in run_ranks(resumed, str(tmp_path), function, world_size=3):
        assert any(told in text for told in ("cannot be read", "can be read", "is damaged"))
        assert not changed
