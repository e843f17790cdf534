"""Loggers that have no room on the disk."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import warm
from mounts import tmpfs
from ranks import DEADLINE
from trackers import AT_ONCE, new_store, pytestmark

from batteries import MLflowLogger, WandbLogger
from batteries._files import make_directory

__all__ = ["new_store", "pytestmark"]  # fixtures, and where these tests run


def test_full_disk() -> None:
    """A full disk leaves whole lines, and one warning with the file."""
    program = (
        "import resource, warnings; from batteries import JsonLinesLogger\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))\n"
        "logger = JsonLinesLogger('logs')\n"
        "for step in range(10): logger.log_metrics({'loss': step}, step); logger._calls.wake()\n"
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


@pytest.mark.parametrize("kind", AT_ONCE)
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
