"""Whether the program of a run is alive: its signs of life, and the state of the run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from batteries._files import PathLike
from batteries._processes import is_alive
from batteries._rundir.record import NAME, replaced_in

# A process that records a run touches its run.json again and again. An observer waits for a change
# for at most 20 seconds of the observer's clock. So clocks of two hosts are not compared.

BEAT = 3.0  # seconds between two signs of life
WATCH = 20.0  # without a sign for this many seconds, a process of another host counts as dead
_LONG_AGO = 3600.0  # seconds; an older record is not watched
_looks: dict[Path, tuple[Any, float]] = {}  # the sign of the first look, and the time of the look


def state_of(run: PathLike, record: dict[str, Any]) -> str:
    """One of running, finished, stopped (by a signal), failed, killed and unknown.

    A run is killed if its process is gone, but no end is recorded. A run on another host or in
    another container counts as running for 40 seconds after its last sign of life. Until an hour
    after that sign, the run is watched for up to 20 seconds, because clocks differ.
    """
    session = record["sessions"][-1]
    state = str(session.get("state", "unknown"))
    if state != "running":
        return state
    alive = is_alive(session)
    if alive is None:
        # Clocks of two hosts are compared only here, because the result is only shown.
        age = abs(time.time() - Path(run, NAME).stat().st_mtime)
        alive = age < 2 * WATCH or (age < _LONG_AGO and shows_life(run))
    return "running" if alive else "killed"


def glance(run: PathLike) -> None:
    """Look at a run's sign of life for the first time.

    `shows_life` waits from this look on. If all runs are looked at first, one wait is enough.
    """
    _looks.setdefault(Path(run, NAME), (_sign(run), time.monotonic()))


def shows_life(run: PathLike) -> bool:
    """Whether a process records the run. It waits until the sign of life of the run changes."""
    from batteries.distributed._waiting import wait_until  # not at the top: it imports torch

    path, sign = Path(run, NAME), _sign(run)
    if sign is None:
        return False
    before, since = _looks.get(path, (None, 0.0))
    if before != sign:
        before, since = _looks[path] = sign, time.monotonic()
    moved = wait_until(lambda: _sign(run) != before, WATCH - (time.monotonic() - since))
    if moved:
        del _looks[path]
    return moved


def _sign(run: PathLike) -> Any:
    path = Path(run, NAME)
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:  # this makes a network file system ask its server
            status = os.fstat(file.fileno())
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def beat(run: PathLike) -> None:
    """Give a sign of life, unless another process records the run now."""
    if replaced_in(run) is None:
        os.utime(Path(run, NAME))
