"""Averages of weights: what an update of the EMA takes, and what the average of files takes."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import print_table, report, take_turns
from torch import Tensor, nn
from torch.optim import swa_utils

from batteries import EMA, average_checkpoints, save_checkpoint

TURNS = 9
FILES, MEGABYTES = 10, 200
DECAY = 0.999


def small() -> nn.Module:
    return nn.Sequential(*(nn.Linear(16, 16) for _ in range(250)))


def resnet50() -> nn.Module:
    """The parameters of a ResNet-50, by their shapes: 25.6 million in 161 tensors."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            outputs = 4 * width
            convolutions = [(width, inputs, 1, 1), (width, width, 3, 3), (outputs, width, 1, 1)]
            convolutions += [(outputs, inputs, 1, 1)] * (block == 0)
            for shape in convolutions:
                shapes += [shape, (shape[0],), (shape[0],)]
            inputs = outputs
    shapes += [(1000, 2048), (1000,)]
    return nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])


@torch.no_grad()
def one_by_one(average: nn.Module, model: nn.Module) -> None:
    """As timm's ModelEmaV2 does it: tensor by tensor of the state dicts."""
    for ours, theirs in zip(
        average.state_dict().values(), model.state_dict().values(), strict=True
    ):
        ours.copy_(DECAY * ours + (1 - DECAY) * theirs)


@torch.no_grad()
def at_once(average: nn.Module, model: nn.Module) -> None:
    """As timm's ModelEmaV3 does it: all tensors in one call, found anew each time."""
    ours: list[Tensor] = list(average.parameters())
    theirs: list[Tensor] = list(model.parameters())
    torch._foreach_lerp_(ours, theirs, 1 - DECAY)


def updating(name: str, model: nn.Module, calls: int) -> None:
    function = swa_utils.get_ema_multi_avg_fn(DECAY)  # type: ignore[no-untyped-call]
    ema = EMA(model, DECAY)
    theirs: list[Tensor] = list(model.parameters())
    averaged = swa_utils.AveragedModel(model, multi_avg_fn=function)
    plain = swa_utils.AveragedModel(
        model,
        avg_fn=swa_utils.get_ema_avg_fn(DECAY),  # type: ignore[no-untyped-call]
    )
    second, third = copy.deepcopy(model), copy.deepcopy(model)
    ours = [parameter.detach().clone() for parameter in theirs]

    @torch.no_grad()
    def bare() -> None:
        torch._foreach_lerp_(ours, theirs, 1 - DECAY)

    contenders: dict[str, Callable[[], object] | None] = {
        "_foreach_lerp_, bare": bare,
        "EMA.update": lambda: ema.update(model),
        "AveragedModel, multi_avg_fn": lambda: averaged.update_parameters(model),
        "AveragedModel, avg_fn": lambda: plain.update_parameters(model),
        "by hand, as timm's V2": lambda: one_by_one(second, model),
        "by hand, as timm's V3": lambda: at_once(third, model),
    }
    timings = take_turns(contenders, turns=TURNS, calls=calls)
    report(f"averaging: EMA of {name}", timings, reference="_foreach_lerp_, bare", unit="ms")


# ---------------------------------------------------------------- files


def read(paths: list[Path]) -> None:
    room = bytearray(2**20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(room):
                pass


def load_all(paths: list[Path]) -> dict[str, Tensor]:
    """What people write: all models in memory, and their mean."""
    states = [torch.load(path)["model_state_dict"] for path in paths]
    return {key: torch.stack([state[key] for state in states]).mean(0) for key in states[0]}


def load_one_by_one(paths: list[Path]) -> dict[str, Tensor]:
    """As timm's average_checkpoints does it: one model after the other, added up in float64."""
    total: dict[str, Tensor] = {}
    for path in paths:
        for key, value in torch.load(path)["model_state_dict"].items():
            total[key] = total[key] + value.double() if key in total else value.double()
    return {key: (value / len(paths)).float() for key, value in total.items()}


def summed(paths: list[Path]) -> dict[str, Tensor]:
    """The least that one can write: a sum in float32."""
    total: dict[str, Tensor] = torch.load(paths[0])["model_state_dict"]
    for path in paths[1:]:
        for key, value in torch.load(path)["model_state_dict"].items():
            total[key] += value
    return {key: value.div_(len(paths)) for key, value in total.items()}


def mapped(paths: list[Path]) -> dict[str, Tensor]:
    """Memory-mapped files, tensor by tensor; nothing is verified."""
    states = [torch.load(path, mmap=True)["model_state_dict"] for path in paths]
    average = {}
    for key, first in states[0].items():
        total = first.clone()
        for state in states[1:]:
            total += state[key]
        average[key] = total.div_(len(states))
    return average


WAYS: dict[str, Callable[[list[Path]], Any]] = {
    "average_checkpoints, verified": average_checkpoints,
    "by hand, a sum": summed,
    "by hand, all in memory": load_all,
    "by hand, one by one": load_one_by_one,
    "by hand, mapped": mapped,
}
MEMORY = """
import sys
sys.path.insert(0, {folder!r})
from pathlib import Path
import averaging
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
averaging.torch.set_num_threads(1)
before = peak()
averaging.WAYS[{way!r}](sorted(Path({files!r}).glob("*.pth")))
print((peak() - before) / 1e6)
"""


def peak_memory(way: str, files: Path) -> float:
    """The megabytes that a way adds to a fresh process at its peak."""
    script = MEMORY.format(folder=str(Path(__file__).parent), way=way, files=str(files))
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True
    )
    return float(result.stdout)


def averaging_files() -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"exp_{i}.pth") for i in range(FILES)]
        for epoch, path in enumerate(paths):
            tensors = {f"layer{i}.weight": torch.randn(500, 500) for i in range(MEGABYTES)}
            save_checkpoint({"epoch": epoch, "model_state_dict": tensors}, path)
        reading = "reading the files once"
        contenders: dict[str, Callable[[], object] | None] = {reading: lambda: read(paths)}
        contenders |= {name: functools.partial(way, paths) for name, way in WAYS.items()}
        threads = torch.get_num_threads()
        for number in (1, os.cpu_count() or 1):
            torch.set_num_threads(number)
            timings = take_turns(contenders, turns=5)
            title = f"averaging: {FILES} files of {MEGABYTES} MB, {number} threads"
            report(title, timings, reference=reading, unit="ms")
        torch.set_num_threads(threads)
        rows = [["memory added at the peak", "MB"]]
        rows += [[name, f"{peak_memory(name, Path(folder)):.0f}"] for name in WAYS]
        print()
        print_table(rows)


def main() -> None:
    updating("500 small tensors", small(), calls=100)
    updating("the 161 tensors of a ResNet-50", resnet50(), calls=3)
    averaging_files()
