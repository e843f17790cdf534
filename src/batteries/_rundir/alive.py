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
_looks: dict[Path, tuple[Any, float]] = {}  # the first look at a sign, and its time


def state_of(run: PathLike, record: dict[str, Any]) -> str:
    """One of running, finished, stopped (by a signal), failed, and killed (without a last word).

    A run on another host or in another container counts as running for 40 seconds after its last
    sign of life. For an hour after that, it is watched for up to 20 seconds, since clocks differ.
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
    """Look at a run's sign of life. After a look at all runs, one wait is enough for all."""
    _looks.setdefault(Path(run, NAME), (_sign(run), time.monotonic()))


def shows_life(run: PathLike) -> bool:
    """Whether a process records the run: whether its sign of life changes."""
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
