"""Programs with loggers that are killed, or fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import warm
from ranks import DEADLINE
from trackers import AT_ONCE, READERS, new_store, pytestmark, read_mlflow

from batteries import MLflowLogger, WandbLogger
from batteries._files import make_directory

__all__ = ["new_store", "pytestmark"]  # fixtures, and where these tests run


LOG_FOR_EVER = """
import os, threading, time, trackers
from pathlib import Path
loggers = {kind: kind(f"logs/{kind.__name__}") for kind in trackers.AT_ONCE}
for logger in loggers.values():
    logger.log_metrics({"loss": 0}, 0)
for kind, read in trackers.AT_ONCE.items():
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
    for kind, read in AT_ONCE.items():
        found = [step for step, _ in read(f"logs/{kind.__name__}")["loss"]]
        assert set(steps) <= set(found), kind
        assert len(set(found)) == len(found)


SAVE_AND_DIE = """
import os, signal, trackers
from batteries.loggers import _background
_background._GRACE = 60  # on a loaded machine, MLflow needs more than two seconds to begin
loggers = {kind: kind(f"logs/{kind.__name__}") for kind in trackers.AT_ONCE}
for step in (1, 2):
    for logger in loggers.values():
        logger.log_metrics({"loss": step}, step)
    states = [logger.state_dict() for logger in loggers.values()]
print([state["step"] for state in states], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_after_a_save(new_store: Path) -> None:
    """Trackers have all steps up to the one in the state, also if a SIGKILL follows at once.

    Except W&B, whose server writes them half a second later.
    """
    shutil.copy(new_store, make_directory("logs/MLflowLogger"))
    program = [sys.executable, "-c", SAVE_AND_DIE]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with warm.Popen(program, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.read() == f"{[2] * len(AT_ONCE)}\n".encode()
    for kind, read in AT_ONCE.items():
        if kind is not WandbLogger:
            assert [step for step, _ in read(f"logs/{kind.__name__}")["loss"]] == [1, 2], kind


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
