"""Saving and loading a checkpoint: how long it takes, and how long training waits for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import Timings, print_table, report, take_turns
from torch import nn
from torch.distributed.checkpoint.state_dict_saver import async_save

from batteries import CheckpointManager
from batteries import make_checkpoint as make_training_checkpoint
from batteries.checkpoint import peek, read_checkpoint, save_checkpoint
from batteries.checkpoint._write import leaves_of

TURNS = 9
LOOPS, SAVES = 5, 3  # measurements of a training loop, and saves in each
CYCLES, STEPS = 15, 28  # measurements of a model's training, and steps from save to save


def make_checkpoint(megabytes: int) -> dict[str, Any]:
    tensors = {f"layer{i}.weight": torch.randn(500, 500) for i in range(megabytes)}
    return {"epoch": 1, "model_state_dict": tensors}


def torch_save(checkpoint: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())


def storing(checkpoint: dict[str, Any], size: int, folder: Path) -> None:
    theirs, ours = folder / "theirs.pth", folder / "ours.pth"
    contenders: dict[str, Callable[[], object] | None] = {
        "torch.save and fsync": lambda: torch_save(checkpoint, theirs),
        "save_checkpoint": lambda: save_checkpoint(checkpoint, ours),
    }
    timings = take_turns(contenders, turns=TURNS)
    report(f"checkpoints: save {size} MB", timings, reference="torch.save and fsync", unit="ms")
    contenders = {
        "torch.load": lambda: torch.load(theirs),
        "read_checkpoint, verified": lambda: read_checkpoint(ours),
        "peek": lambda: peek(ours),
    }
    timings = take_turns(contenders, turns=TURNS)
    report(f"checkpoints: load {size} MB", timings, reference="torch.load", unit="ms")


# Loads into a model of 0.5 GB, with its optimizer where it says so; prints seconds and MiB.
LOAD = """
import sys, time
from pathlib import Path
import torch
from torch import nn
from batteries import load_checkpoint

def status(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) / 1024

how, path = sys.argv[1:]
model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(31)))
optimizer = torch.optim.AdamW(model.parameters())
block = bytearray(2**20)
start = time.perf_counter()
with open(path, "rb", buffering=0) as file:
    while file.readinto(block):
        pass
read = time.perf_counter() - start
Path("/proc/self/clear_refs").write_text("5")
before, start = status("VmRSS"), time.perf_counter()
if how == "load_checkpoint, model":
    load_checkpoint(path, model)
elif how == "load_checkpoint, all":
    load_checkpoint(path, model, optimizer)
elif how != "reading it once":
    checkpoint = torch.load(path, mmap="mmap" in how)
    model.load_state_dict(checkpoint["model_state_dict"])
    if "all" in how:
        optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
taken = read if how == "reading it once" else time.perf_counter() - start
print(taken, status("VmHWM") - before)
"""


def loading_parts(folder: Path) -> None:
    """A model of 0.5 GB out of a cached file of 1.5 GB: how long it takes, and in which memory."""
    model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(31)))
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    path = folder / "large.pth"
    save_checkpoint(make_training_checkpoint("train", 1, model, optimizer), path)
    hows = ["reading it once", "torch.load, model", "torch.load, mmap, model"]
    hows += ["load_checkpoint, model", "torch.load, all", "load_checkpoint, all"]
    found: dict[str, list[list[float]]] = {how: [] for how in hows}
    for _ in range(LOOPS):
        for how in hows:
            command = [sys.executable, "-c", LOAD, how, str(path)]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[how].append([float(word) for word in told.split()])
    base = median(seconds for seconds, _ in found[hows[0]])
    rows = [["", "median, ms", "ratio", "memory, MiB"]]
    for how, values in found.items():
        seconds, memory = (median(column) for column in zip(*values, strict=True))
        rows.append([how, f"{seconds * 1e3:.0f}", f"{seconds / base:.2f}", f"{memory:.0f}"])
    print("\n### checkpoints: load a part of 1,500 MB\n")
    print_table(rows)


def managing(checkpoint: dict[str, Any], size: int, folder: Path) -> None:
    """Best, last and the best three, while each epoch is better than the one before."""
    epoch = 0
    manager = CheckpointManager(folder / "manager", save_n_best=3)

    def process() -> None:
        nonlocal epoch
        epoch += 1
        manager.process(1 / epoch, epoch, {**checkpoint, "epoch": epoch})

    def three_times() -> None:
        for name in ("exp.pth", "best.pth", "last.pth"):
            torch_save(checkpoint, folder / name)

    contenders: dict[str, Callable[[], object] | None] = {
        "torch.save and fsync, once": lambda: torch_save(checkpoint, folder / "once.pth"),
        "the same three times": three_times,
        "CheckpointManager.process": process,
    }
    timings = take_turns(contenders, turns=TURNS)
    title = f"checkpoints: best, last and top 3 of {size} MB"
    report(title, timings, reference="torch.save and fsync, once", unit="ms")


def waiting(checkpoint: dict[str, Any], size: int, folder: Path) -> None:
    """How long the training thread is held by one save, the one before being on the disk."""
    manager = CheckpointManager(folder / "background", save_n_best=0, background=True)
    copies = [torch.empty_like(tensor) for tensor in checkpoint["model_state_dict"].values()]
    timings: Timings = {"a copy in memory": [], "torch.save": [], "DCP async_save": []}
    timings["background=True"] = []

    def timed(name: str, call: Callable[[], object]) -> object:
        start = time.perf_counter()
        result = call()
        taken = timings[name]
        assert taken is not None
        taken.append((time.perf_counter() - start) * 1e6)
        return result

    def copy() -> None:
        for mine, tensor in zip(copies, checkpoint["model_state_dict"].values(), strict=True):
            mine.copy_(tensor)

    def async_dcp() -> object:
        return async_save(checkpoint, checkpoint_id=folder / f"dcp{turn % 2}")

    def process() -> None:
        manager.process(turn, turn, {**checkpoint, "epoch": turn})

    for turn in range(TURNS + 3):  # noqa: B007 (what is timed uses it)
        os.sync()  # no contender waits for the writes of another one
        timed("a copy in memory", copy)
        timed("torch.save", lambda: torch.save(checkpoint, folder / "blocked.pth"))
        os.sync()
        future: Any = timed("DCP async_save", async_dcp)
        future.result()
        os.sync()
        timed("background=True", process)
        manager.wait()
    manager.close()
    warm = {name: times and times[3:] for name, times in timings.items()}  # the buffers are there
    report(
        f"checkpoints: training held by {size} MB", warm, reference="a copy in memory", unit="ms"
    )


def losing(checkpoint: dict[str, Any], size: int, folder: Path, threads: int) -> None:
    """Training time lost for each save, with a core to spare and with all of them training."""
    torch.set_num_threads(threads)
    weights = torch.randn(512, 512)
    saves_every = 40 if size < 100 else 200  # steps of about 2 ms: a save is over by the next

    def train(save: Callable[[int], object] | None, finish: Callable[[], object]) -> float:
        x = torch.randn(512, 512)
        start = time.perf_counter()
        for step in range(SAVES * saves_every):
            for _ in range(2):
                x = torch.tanh(weights @ x)
            if save is not None and step % saves_every == 0:
                save(step)
        taken = time.perf_counter() - start
        finish()
        return taken

    manager = CheckpointManager(folder / f"losing{threads}", save_n_best=0, background=True)
    begun = 0

    def process(_: int) -> None:
        nonlocal begun
        begun += 1
        manager.process(begun, begun, {**checkpoint, "epoch": begun})

    def nothing() -> None:
        pass

    contenders: dict[str, tuple[Callable[[int], object] | None, Callable[[], object]]] = {
        "no saves": (None, nothing),
        "torch.save": (lambda _: torch.save(checkpoint, folder / "losing.pth"), nothing),
        "background=True": (process, manager.wait),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(LOOPS):
        for name, (save, finish) in contenders.items():
            times[name].append(train(save, finish))
            os.sync()
    manager.close()
    torch.set_num_threads(1)
    rows = [["", "a step, ms", "lost for each save, ms"]]
    for name, taken in times.items():
        bare = times["no saves"]
        lost = median(t - b for t, b in zip(taken, bare, strict=True)) / SAVES * 1e3
        rows.append([name, f"{median(taken) / SAVES / saves_every * 1e3:.2f}", f"{lost:+.1f}"])
    spare = "a core to spare" if threads < (os.cpu_count() or 1) else "every core training"
    print(f"\n### checkpoints: training lost to {size} MB, {spare}\n")
    print_table(rows)


class _BareThread:
    """The least that one can do: a copy in kept memory, which a thread writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept: list[torch.Tensor] = []
        self.thread: threading.Thread | None = None

    def save(self, checkpoint: dict[str, Any]) -> None:
        self.wait()
        found = [leaf for leaf in leaves_of(checkpoint) if isinstance(leaf, torch.Tensor)]
        self.kept = self.kept or [torch.empty_like(tensor) for tensor in found]
        torch._foreach_copy_(self.kept, found)
        self.thread = threading.Thread(target=self.write)
        self.thread.start()

    def write(self) -> None:
        with self.path.open("wb", buffering=0) as file:
            for tensor in self.kept:
                file.write(tensor.numpy().data)
            os.fsync(file.fileno())

    def wait(self) -> None:
        if self.thread:
            self.thread.join()


def _own_seconds() -> float:
    """A clock that stands still while this thread waits for a core that other programs have."""
    with suppress(OSError):  # Linux has it
        told = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text()
        return time.perf_counter() - int(told.split()[1]) / 1e9
    return time.perf_counter()


def cycling(folder: Path, threads: int) -> None:
    """All the time that the loop of a real model loses through its saves."""
    torch.set_num_threads(threads)
    model = nn.Sequential(*(nn.Linear(760, 760) for _ in range(6)))  # with AdamW 41 MB
    optimizer = torch.optim.AdamW(model.parameters())
    batch, epoch = torch.randn(96, 760), 0
    bare = _BareThread(folder / "bare.pth")
    manager = CheckpointManager(folder / f"cycling{threads}", save_n_best=0, background=True)

    def train(save: Callable[[dict[str, Any]], object] | None, wait: Callable[[], object]) -> float:
        nonlocal epoch
        start = _own_seconds()
        for step in range(1, SAVES * STEPS + 1):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
            if save is not None and step % STEPS == 0:
                epoch += 1
                save(make_training_checkpoint("train", epoch, model, optimizer))
        taken = _own_seconds() - start
        wait()
        return taken

    def nothing() -> None:
        pass

    contenders: dict[str, tuple[Any, Callable[[], object]]] = {
        "no saves": (None, nothing),
        "torch.save": (lambda checkpoint: torch.save(checkpoint, folder / "cycle.pth"), nothing),
        "a bare thread": (bare.save, bare.wait),
        "background=True": (
            lambda checkpoint: manager.process(epoch, epoch, checkpoint),
            manager.wait,
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(CYCLES + 1):
        for name, (save, wait) in contenders.items():
            taken = train(save, wait)
            os.sync()
            times[name] += [taken] * (turn > 0)  # the first one makes what is kept
    manager.close()
    torch.set_num_threads(1)
    rows = [["", "a step, ms", "lost for each save, ms", "ratio"]]
    lost = {
        name: median(t - b for t, b in zip(taken, times["no saves"], strict=True)) / SAVES * 1e3
        for name, taken in times.items()
    }
    for name, loops in times.items():
        step = median(loops) / SAVES / STEPS * 1e3
        ratio = lost[name] / lost["torch.save"]
        rows.append([name, f"{step:.2f}", f"{lost[name]:+.1f}", f"{ratio:.2f}"])
    spare = "a core to spare" if threads < (os.cpu_count() or 1) else "every core training"
    print(f"\n### checkpoints: a save every {STEPS} steps of a model of 41 MB, {spare}\n")
    print_table(rows)


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        loading_parts(folder)
        for threads in sorted({1, os.cpu_count() or 1}):
            cycling(folder, threads)
        for size in (40, 400):
            checkpoint = make_checkpoint(size)
            storing(checkpoint, size, folder)
            managing(checkpoint, size, folder)
            waiting(checkpoint, size, folder)
            for threads in sorted({1, os.cpu_count() or 1}):
                losing(checkpoint, size, folder, threads)
    finally:
        shutil.rmtree(folder)
