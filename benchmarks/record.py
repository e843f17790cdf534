"""Logging beside a training loop, reading a thousand runs, and the start of the command line."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import Timings, peer, report
from torch import nn

from batteries import (
    CheckpointManager,
    JsonLinesLogger,
    Loggers,
    MLflowLogger,
    TensorBoardLogger,
    TensorBoardXLogger,
    WandbLogger,
    make_checkpoint,
    start_run,
)
from batteries.scoreboard import read_runs

METRICS = {f"metric_{number}": number / 7 for number in range(10)}
STEPS = 300
RUNS, EPOCHS = 1000, 200


def logging_() -> None:
    """How long one call holds a loop whose steps take some milliseconds."""
    with tempfile.TemporaryDirectory() as directory:
        contenders, loggers = _contenders(Path(directory))
        timings: Timings = {name: [] for name in contenders}
        weights = torch.randn(600, 600)
        for step in range(STEPS):
            for name, log in contenders.items():
                weights @ weights
                begun = time.perf_counter()
                log(step)
                taken = timings[name]
                assert taken is not None
                if step >= STEPS // 3:  # the trackers are open by then
                    taken.append((time.perf_counter() - begun) * 1e6)
        for logger in loggers:
            logger.close()
    report("record: log_metrics of 10 numbers", timings, reference="torch's SummaryWriter")


def _contenders(root: Path) -> tuple[dict[str, Callable[[int], Any]], list[Any]]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(root / "torch")

    def by_hand(step: int) -> None:
        for name, value in METRICS.items():
            writer.add_scalar(name, value, step)

    local = [
        JsonLinesLogger(root / "lines"),
        TensorBoardLogger(root / "tensorboard"),
        TensorBoardXLogger(root / "tensorboardx"),
        WandbLogger(root / "wandb"),
        MLflowLogger(root / "mlflow"),
    ]
    alone, files, everything = JsonLinesLogger(root / "alone"), Loggers(*local[:3]), Loggers(*local)
    found: dict[str, Callable[[int], Any]] = {
        "torch's SummaryWriter": by_hand,
        "JsonLinesLogger": lambda step: alone.log_metrics(METRICS, step),
        "Loggers of three files": lambda step: files.log_metrics(METRICS, step),
        "Loggers of all five": lambda step: everything.log_metrics(METRICS, step),
    }
    lightning: Any = peer("lightning.pytorch.loggers")
    if lightning is not None:
        lines, events = lightning.CSVLogger(root / "csv"), lightning.TensorBoardLogger(root / "pl")
        found["Lightning's CSVLogger"] = lambda step: lines.log_metrics(METRICS, step)
        found["Lightning's TensorBoardLogger"] = lambda step: events.log_metrics(METRICS, step)
    return found, [writer, alone, *local]


def reading() -> None:
    with tempfile.TemporaryDirectory() as directory:
        with start_run(directory) as run:
            manager = CheckpointManager(run.path / "checkpoints", "accuracy", False, save_n_best=1)
            for epoch in range(1, EPOCHS + 1):
                scores = {"accuracy": epoch / 300, "loss": 1 / epoch}
                manager.process(scores, epoch, make_checkpoint("a", epoch, nn.Linear(1, 1)))
        for number in range(2, RUNS + 1):
            shutil.copytree(run.path, Path(directory, f"{number:03d}"))
        timings: Timings = {f"{RUNS:,} runs of {EPOCHS} epochs": []}
        for times in timings.values():
            for _ in range(9):
                begun = time.perf_counter()
                rows = [run_info.row() for run_info in read_runs(directory)]
                assert times is not None
                times.append((time.perf_counter() - begun) * 1e6)
                assert len(rows) == RUNS
    report("record: runs read from the disk", timings, reference=next(iter(timings)), unit="ms")


def starting() -> None:
    programs = {
        "python alone": ["-c", "pass"],
        "import batteries.cli": ["-c", "import batteries.cli"],
        "batteries --help": ["-m", "batteries", "--help"],
    }
    timings: Timings = {name: [] for name in programs}
    for _ in range(11):
        for name, words in programs.items():
            begun = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, capture_output=True)
            times = timings[name]
            assert times is not None
            times.append((time.perf_counter() - begun) * 1e6)
    report("record: the command line starts", timings, reference="python alone", unit="ms")


def main() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging_()
    reading()
    starting()


if __name__ == "__main__":
    main()
