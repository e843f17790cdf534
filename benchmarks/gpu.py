"""The tests and the benchmarks that need a GPU, with one table of all results.

    python benchmarks/gpu.py

Takes at most eight minutes. It uses the installed torch, and leaves out the rest at the time limit.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import print_table, take_turns
from torch import Tensor, nn
from torch.utils.data import Dataset

from batteries import EMA, AverageMeter, CheckpointManager, t2d
from batteries.data import DataLoader

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
LIMIT = 330  # seconds for the tests; the benchmarks take less than 120
Row = list[str]
OPTIONS = [
    *("-m", "gpu", "-v", "--tb=short", "--durations=10", "--continue-on-collection-errors"),
    # Of the plugins that are installed only this one, and no options of other plugins.
    *("-p", "pytest_timeout", "-o", f"timeout={LIMIT // 3}", "-o", "addopts=--strict-markers"),
    # The releases of packages are any, and may warn of each other.
    *("-W", "ignore::DeprecationWarning", "-W", "ignore::FutureWarning"),
]
VARIABLES = {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")])),
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # torch reads it once, perhaps before `seed_all` sets it
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no processes that outlive a test
}


def is_for_gpus(path: Path) -> bool:
    return "pytest.mark.gpu" in path.read_text()


def tested() -> list[Row]:
    """How many tests passed, and a row for each that did not."""
    files = [str(path) for path in sorted(ROOT.glob("tests/test_*.py")) if is_for_gpus(path)]
    with tempfile.TemporaryDirectory() as folder:
        report, begun = Path(folder, "report.xml"), time.perf_counter()
        command = [sys.executable, "-m", "pytest", *OPTIONS, f"--junitxml={report}", *files]
        environment = {**os.environ, **VARIABLES}
        with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
            try:
                code = process.wait(LIMIT)
                note = "" if code in (0, 1) and report.exists() else f"ended with {code}"
            except subprocess.TimeoutExpired:
                note = f"not finished after {LIMIT} s"
                process.send_signal(signal.SIGINT)  # it ends its ranks, and writes its report
                with suppress(subprocess.TimeoutExpired):
                    process.wait(30)
                process.kill()
        cases = list(ET.parse(report).iter("testcase")) if report.exists() else []
        cases = cases[: -1 if note.startswith("not") else None]  # the last one was interrupted
    found: dict[str, list[str]] = {"passed": [], "failure": [], "error": [], "skipped": []}
    for case in cases:
        kind = next((part.tag for part in case if part.tag in found), "passed")
        found[kind].append(f"{case.get('classname')}::{case.get('name')}")
    told = ", ".join(f"{len(names)} {kind}" for kind, names in found.items())
    rows = [["tests marked gpu", told, f"{time.perf_counter() - begun:.0f} s"]]
    rows += [["  pytest", "error", note]] if note else []
    return rows + [[f"  {name}", k, ""] for k in ("failure", "error") for name in found[k]]


class Images(Dataset[Any]):
    """Batches of 77 MB, ready in memory: only the copy takes time."""

    def __init__(self, pinned: bool = True) -> None:
        images = torch.rand(128, 3, 224, 224)
        self.images = images.pin_memory() if pinned else images
        self.labels = torch.arange(128)

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images, self.labels


def step_seconds(batches: Iterable[Any], model: nn.Module, **how: Any) -> float:
    """The mean time of a step, in an epoch that ends when the GPU has finished all steps."""
    torch.cuda.synchronize()
    begun, count = time.perf_counter(), 0
    for batch in batches:
        images, _ = t2d(batch, 0, **how)
        model(images).mean().backward()
        count += 1
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / count


def copies() -> list[Row]:
    """A step with its batch moved in different ways, beside one whose batch stays on the GPU."""
    layers = [nn.Conv2d(3, 32, 7, 2, 3), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
    model, data = nn.Sequential(*layers, nn.Conv2d(32, 32, 3, padding=1)).cuda(), Images()
    options: dict[str, Any] = {"batch_size": None, "num_workers": 0}
    on_gpu = [t2d(data[0], 0)] * len(data)
    contenders: dict[str, Callable[[], float]] = {
        "batch on the GPU before": partial(step_seconds, on_gpu, model),
        "t2d": partial(step_seconds, DataLoader(Images(pinned=False), **options), model),
        "t2d, pinned and non_blocking": partial(
            step_seconds, DataLoader(data, pin_memory=True, **options), model, non_blocking=True
        ),
        "prefetch_to": partial(step_seconds, DataLoader(data, prefetch_to=0, **options), model),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(6):
        for name, call in contenders.items():
            seconds = call()
            times[name] += [seconds] if turn else []  # the first warms up
    base = median(times["batch on the GPU before"])
    return [
        [f"a step: {name}", f"{median(t) * 1e3:.2f} ms", f"{median(t) / base:.2f}"]
        for name, t in times.items()
    ]


def compared(title: str, contenders: dict[str, Callable[[], object]], calls: int) -> list[Row]:
    """Calls in turns, each with the time until the GPU has done it."""

    def whole(call: Callable[[], object]) -> Callable[[], object]:
        def ended() -> None:
            call()
            torch.cuda.synchronize()

        return ended

    timings = take_turns({n: whole(c) for n, c in contenders.items()}, turns=15, calls=calls)
    times = {name: median(values or [0.0]) for name, values in timings.items()}
    base = next(iter(times.values()))
    return [[f"{title}: {n}", f"{t:.1f} us", f"{t / base:.2f}"] for n, t in times.items()]


def averages() -> list[Row]:
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(48))).cuda()
    ema = EMA(model, 0.999)
    ours = [parameter.detach().clone() for parameter in model.parameters()]
    theirs = [parameter.detach() for parameter in model.parameters()]
    contenders: dict[str, Callable[[], object]] = {
        "bare foreach": partial(torch._foreach_lerp_, ours, theirs, 0.001),
        "EMA.update": partial(ema.update, model),
    }
    return compared("average of 12.6M weights", contenders, 20)


def meters() -> list[Row]:
    loss, meter = torch.rand((), device="cuda"), AverageMeter()
    contenders: dict[str, Callable[[], object]] = {
        "loss.item()": loss.item,
        "AverageMeter.update": partial(meter.update, loss, 32),
    }
    return compared("a loss", contenders, 50)


def saves() -> list[Row]:
    """How long training is held by a save of 400 MB."""
    weights = {str(number): torch.rand(1 << 20, device="cuda") for number in range(100)}
    held: dict[str, list[float]] = {"torch.save": [], "background=True": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        CheckpointManager(f"{folder}/logs", background=True, save_n_best=0) as manager,
    ):
        for epoch in range(1, 7):
            checkpoint = {"epoch": epoch, "model_state_dict": weights}
            torch.cuda.synchronize()
            begun = time.perf_counter()
            torch.save(checkpoint, f"{folder}/a.pth")
            between = time.perf_counter()
            manager.process(0.5, epoch, checkpoint)
            ended = time.perf_counter()
            manager.wait()
            if epoch > 2:  # both rooms of pinned memory are made
                held["torch.save"].append(between - begun)
                held["background=True"].append(ended - between)
    base = median(held["torch.save"])
    return [
        [f"held by 400 MB: {name}", f"{median(t) * 1e3:.1f} ms", f"{median(t) / base:.3f}"]
        for name, t in held.items()
    ]


def measured(benchmark: Callable[[], list[Row]]) -> list[Row]:
    """Its rows; one that fails does not hide the others."""
    try:
        return benchmark()
    except Exception as error:
        return [[benchmark.__name__, "error", f"{type(error).__name__}: {str(error)[:80]}"]]


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no GPU here: nothing was run")
    rows = tested()
    for benchmark in (copies, averages, meters, saves):
        rows += measured(benchmark)
    rows = [[cell.replace("|", "/") for cell in row] for row in rows]
    machine = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    version = importlib.metadata.version
    print_table(
        [
            [f"{machine}, torch {torch.__version__}", "", "time or ratio"],
            ["python, CUDA", f"{platform.python_version()}, {torch.version.cuda}", ""],
            ["numpy", version("numpy"), ""],
            *rows,
        ]
    )
    sys.exit(any(row[1] in ("failure", "error") for row in rows))


if __name__ == "__main__":
    main()
