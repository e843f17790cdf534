"""The end of a process that multiprocessing has started is that of a program."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import warm
from sweeps import sweep

from batteries import JsonLinesLogger
from batteries.loggers import read_lines

PROGRAM = """
import multiprocessing, sys
import torch
from batteries import CheckpointManager, JsonLinesLogger, make_checkpoint, start_run

def train(end):
    manager = CheckpointManager("logs", background=True)
    logger, run = JsonLinesLogger("logs"), start_run("runs")
    for epoch in (1, 2):
        checkpoint = make_checkpoint("train", epoch, torch.nn.Linear(1000, 1000))
        logger.log_metrics({"loss": epoch}, epoch)
        manager.process(1 / epoch, epoch, checkpoint)
    held.extend([manager, logger])
    exec(end)

held = []
if __name__ == "__main__":
    if sys.argv[3:]:
        from elsewhere import train
    process = multiprocessing.get_context(sys.argv[1]).Process(target=train, args=sys.argv[2:3])
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""


@pytest.mark.parametrize(
    ("end", "code", "state", "more"),
    [
        ("", 0, "finished", []),
        ("raise ValueError", 1, "failed", []),
        ("raise ValueError", 1, "failed", ["in another module"]),
        ("sys.exit(75)", 75, "stopped", []),
    ],
)
@pytest.mark.parametrize("how", ["fork", sweep("forkserver"), sweep("spawn")])
def test_nothing_is_lost(how: str, end: str, code: int, state: str, more: list[str]) -> None:
    """What was logged and saved is written, and the run's end recorded, without a `close`."""
    for name in ("train.py", "elsewhere.py"):
        Path(name).write_text(PROGRAM)
    command: list[Any] = [sys.executable, "train.py", how, end, *more]
    start: Any = warm.run if how == "fork" else subprocess.run  # spawn imports the program's file
    ended = start(command, capture_output=True, timeout=120)
    assert ended.returncode == code, ended.stderr
    names = sorted(path.name for path in Path("logs").iterdir())
    saves = ["best.pth", "exp_1.pth", "exp_2.pth", "last.pth", "metrics.json"]
    assert names == [*saves, "metrics.jsonl"]
    assert len(Path("logs/metrics.jsonl").read_text().splitlines()) == 2
    [session] = json.loads(Path("runs/001/run.json").read_bytes())["sessions"]
    assert session["state"] == state


def log_in_a_fork(lines: JsonLinesLogger, step: int) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        lines.log_metrics({"loss": 1}, step)
    Path("told.txt").write_text("".join(str(each.message) for each in told))


def test_a_logger_that_was_made_before_a_fork() -> None:
    """A fork writes what it logs, or says that it cannot: the thread is in the other process."""
    lines, forking = JsonLinesLogger("logs"), multiprocessing.get_context("fork")
    for step in (1, 3):  # the first one before the logger has begun here
        fork = forking.Process(target=log_in_a_fork, args=(lines, step))
        fork.start()
        fork.join(60)
        assert fork.exitcode == 0
        lines.log_metrics({"loss": 1}, step + 1)
    lines.close()
    assert [line["step"] for line in read_lines("logs")] == [1, 2, 4]
    assert "which this process is a fork: make a logger in each" in Path("told.txt").read_text()
