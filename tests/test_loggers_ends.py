"""Programs with loggers that are killed, fail, or have no room on the disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import warm
from mounts import tmpfs
from ranks import DEADLINE
from trackers import READERS, new_store, pytestmark, read_mlflow

from batteries import MLflowLogger, WandbLogger
from batteries._files import make_directory

__all__ = ["new_store", "pytestmark"]  # fixtures, and where these tests run


LOG_FOR_EVER = """
import os, threading, time, trackers
from pathlib import Path
loggers = {kind: kind(f"logs/{kind.__name__}") for kind in trackers.READERS}
for logger in loggers.values():
    logger.log_metrics({"loss": 0}, 0)
for kind, read in trackers.READERS.items():
    path = Path(f"logs/{kind.__name__}")
    trackers.wait_until(lambda: path.is_dir() and read(path))

worst, pause = 0.0, threading.Event()
def probe():  # what the loggers' threads do: wait, and write to the disk
    global worst
    while True:
        begun = time.monotonic()
        pause.wait(0.1)
        with open("probe", "wb") as file:
            file.write(bytes(4096))
            os.fsync(file.fileno())
        worst = max(worst, time.monotonic() - begun - 0.1)

threading.Thread(target=probe, daemon=True).start()
for step in range(1, 100_000):
    for logger in loggers.values():
        logger.log_metrics({"loss": step}, step)
    print(time.monotonic(), worst, flush=True)
    pause.wait(0.05)
"""


def test_killed(new_store: Path) -> None:
    """What was logged a second before a SIGKILL, by the program's own clock, is with all trackers.

    And what the machine keeps a thread waiting, which the program measures.
    """
    shutil.copy(new_store, make_directory("logs/MLflowLogger"))
    program = [sys.executable, "-c", LOG_FOR_EVER]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with warm.Popen(program, stdout=subprocess.PIPE, env=env) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(60)]
        finally:
            process.kill()
        lines += process.stdout.read().splitlines(keepends=True)
    told = [tuple(map(float, line.split())) for line in lines if line.endswith(b"\n")]
    latest = told[-1][0] - 1 - 10 * told[-1][1]
    steps = [step for step, (logged, _) in enumerate(told, start=1) if logged < latest]
    for kind, read in READERS.items():
        found = [step for step, _ in read(f"logs/{kind.__name__}")["loss"]]
        assert set(steps) <= set(found), kind
        assert len(set(found)) == len(found)


MAKE_A_STORE = """
import threading
from batteries import MLflowLogger
MLflowLogger("logs").log_metrics({"loss": 1}, 1)
threading.Event().wait()
"""


def size_of_store() -> int:
    """Of the file, or of the one that is to have its name."""
    sizes = [0]
    for path in Path("logs").glob("*mlflow.db*"):
        with suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return max(sizes)


@pytest.mark.sweep
def test_killed_while_a_store_is_made() -> None:
    """A SIGKILL at any moment of its creation leaves no MLflow store that cannot be opened."""
    kill_when_a_store_has(200_000)


def kill_when_a_store_has(size: int) -> None:
    """When its files have so many bytes, of some 500,000."""
    shutil.rmtree("logs", ignore_errors=True)
    with warm.Popen([sys.executable, "-c", MAKE_A_STORE]) as process:
        try:
            deadline = time.monotonic() + DEADLINE
            while size_of_store() < size:
                assert time.monotonic() < deadline
        finally:
            process.kill()
    with MLflowLogger("logs") as logger:
        logger.log_metrics({"loss": 2}, 2)
    assert read_mlflow("logs") == {"loss": [(2, 2.0)]}
    assert not list(Path("logs").glob(".*"))


def test_the_end_of_the_program(new_store: Path) -> None:
    """A logger that nobody closed writes everything at the end of the program."""
    shutil.copy(new_store, make_directory("logs/MLflowLogger"))
    kinds = [kind.__name__ for kind in READERS]
    program = (
        "import batteries\n"
        f"loggers = [getattr(batteries, kind)(f'logs/{{kind}}') for kind in {kinds}]\n"
        "for logger in loggers: logger.log_metrics({'loss': 1}, 1)\n"
        "raise ValueError"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert result.returncode == 1
    for kind, read in READERS.items():
        assert read(f"logs/{kind.__name__}") == {"loss": [(1, 1.0)]}


def test_full_disk() -> None:
    """A full disk leaves whole lines, and one warning with the file."""
    program = (
        "import resource, warnings; from batteries import JsonLinesLogger\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))\n"
        "logger = JsonLinesLogger('logs')\n"
        "for step in range(10): logger.log_metrics({'loss': step}, step); logger._hurry.set()\n"
        "logger.close()"
    )
    result = warm.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stderr.count("File too large: 'logs/metrics.jsonl'") == 1
    assert Path("logs/metrics.jsonl").read_bytes()[-1:] in (b"", b"\n")


LOG_ON_A_FULL_DISK = """
import sys
from pathlib import Path
from trackers import READERS, wait_until
kind = next(kind for kind in READERS if kind.__name__ == sys.argv[1])
logger = kind("small/logs")
logger.log_metrics({"loss": 0}, 0)
wait_until(lambda: Path("small/logs").is_dir() and READERS[kind]("small/logs"))
with open("small/filler", "wb", buffering=0) as filler:
    try:
        while filler.write(b"x" * 4096): ...
    except OSError: ...
for step in range(1, 1000):
    logger.log_metrics({"loss": step, "a name that is longer than what is left": 1}, step)
wait_until(lambda: logger._error or kind.__name__ == "WandbLogger")
if sys.argv[2] == "later":
    filler = open("small/filler", "wb")
    logger.log_metrics({"loss": 1000}, 1000)
logger.close()
print(max(step for step, _ in READERS[kind]("small/logs")["loss"]))
"""


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("room", ["never", "later"])
def test_a_disk_that_is_full(kind: Any, room: str, new_store: Path, tmp_path: Path) -> None:
    """A full disk is warned about once, and the program ends; what comes later is there."""
    if room == "later" and kind is WandbLogger:
        pytest.skip("wandb's server ends with the first error")
    program = [sys.executable, "-c", LOG_ON_A_FULL_DISK, kind.__name__, room]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with tmpfs(tmp_path / "small", 8 * 2**20):
        if kind is MLflowLogger:
            shutil.copy(new_store, make_directory("small/logs"))
        result = warm.run(program, env=env, capture_output=True, text=True, timeout=2 * DEADLINE)
    assert result.returncode == 0
    assert result.stderr.count("fails, and training goes on") == 1
    assert "calls were lost" in result.stderr
    assert "Traceback" not in result.stderr
    assert (int(result.stdout) == 1000) == (room == "later")
