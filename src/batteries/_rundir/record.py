"""The record of a run, `run.json`, and the state of the run."""

from __future__ import annotations

import functools
import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from batteries._files import PathLike, walk, write_whole
from batteries._foreign import Most, check, read_json
from batteries._masking import masked_record
from batteries._processes import is_alive

NAME = "run.json"
BEAT = 3.0  # seconds between two signs of life
WATCH = 20.0  # without a sign for this many seconds, a process of another host counts as dead
SEEN = 5.0  # seconds in which a rank must see the files of rank 0
_LONG_AGO = 3600.0  # seconds; an older record is not watched
_looks: dict[Path, tuple[Any, float]] = {}  # the first look at a sign, and its time
_sessions: dict[Path, str] = {}  # the runs that this process records, and its sessions in them

# The schema of all values that are used. Other values are only shown.
_SESSION = {
    **dict.fromkeys(("args", "git", "packages", "variables"), (None, dict)),
    **dict.fromkeys(("state", "started", "stopped", "born"), (None, Most(str, 100))),
    "pid": (None, int),
    "host": (None, Most(str, 1000)),
    "directory": (None, Most(str, 5000)),
    "program": (None, Most(str, 5000)),
    "launch": (None, list),
    "stages": [
        {"stage": Most(str, 1000), "metric": Most(str, 1000), "minimization": bool}
        | {"score": float, "epoch": int, "epochs": int}
    ],
}
SCHEMA = {"id": Most(str, 100), "sessions": [_SESSION]}


def read_record(run: PathLike) -> dict[str, Any] | None:
    """The record of a run; None if there is none."""
    path = Path(run, NAME)
    try:
        record: dict[str, Any] = read_json(path, inside=run)
        check(record, SCHEMA)
        if not record.get("sessions"):
            raise ValueError("it has no sessions")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(f"{path} is not the record of a run: {error}") from None
    return record


def write_record(run: PathLike, record: dict[str, Any]) -> None:
    """Replace the record. Secrets are masked."""
    data = json.dumps(masked_record(record), indent=1, default=repr).encode()
    with write_whole(Path(run, NAME), len(data), inside=run) as file:
        file.write(data)


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


def files_of(run: PathLike, name: str) -> Iterator[Path]:
    """The files of a run with a name: in its directory and two levels below, without inner runs."""
    for folder, folders, files in walk(run, 2):
        if NAME in files and folder != os.fspath(run):
            folders.clear()
        elif name in (*files, *folders):
            yield Path(folder, name)


# ---------------------------------------------------------------- signs of life

# A process that records a run touches its run.json again and again. An observer waits for a change
# for at most 20 seconds of the observer's clock. So clocks of two hosts are not compared.


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


# ---------------------------------------------------------------- who may write


def hold(run: PathLike, session: str) -> None:
    """Note that this process records a run, in this session."""
    _sessions[Path(run).resolve()] = session


def check_held(directory: PathLike) -> None:
    """Raise if another process has taken over the run of a directory from this one.

    All code that writes into a run calls it first. The last session in `run.json` may write.
    """
    newer = replaced_in(directory)
    if newer is not None:
        raise RuntimeError(
            f"{directory} belongs to a newer run by now (process {newer.get('pid')} on "
            f"{newer.get('host')}, since {newer.get('started')}): this program no longer writes "
            "there; stop one of the two, or start another run with new=True"
        )


def check_seen(run: PathLike, session: str, host: str) -> None:
    """Warn if this rank does not see the session that rank 0 has recorded."""

    def recorded() -> bool:
        sessions = (read_record(run) or {"sessions": []})["sessions"]
        return any(each.get("id") == session for each in sessions)

    warn_unless_seen(recorded, run, host)


def warn_unless_seen(there: Callable[[], bool], directory: PathLike, host: str) -> None:
    """Warn if this rank does not see what rank 0 has written to a directory."""
    from batteries.distributed import rank
    from batteries.distributed._waiting import wait_until

    def seen() -> bool:
        with suppress(OSError, ValueError):  # some file systems lose a name for a moment
            return there()
        return False

    if not wait_until(seen, SEEN):
        warnings.warn(
            f"rank {rank()} on {platform.node()} does not see what rank 0 on {host} has written to "
            f"{directory}: each host has its own directory of this name; use a directory that all "
            "hosts share, or the ranks will not resume together",
            stacklevel=4,
        )


def replaced_in(directory: PathLike) -> dict[str, Any] | None:
    """The session that has replaced this process's session in the run of a directory, if any."""
    place = Path(directory).resolve() if _sessions else Path()
    for run in (place, *place.parents):
        if run in _sessions and (run / NAME).exists():
            status = (run / NAME).stat()
            last = _last_session(run, status.st_ino, status.st_ctime_ns)
            return last if last and last.get("id") != _sessions[run] else None
    return None


@functools.lru_cache(maxsize=8)
def _last_session(run: Path, *_: int) -> dict[str, Any] | None:
    record = read_record(run)
    return record and record["sessions"][-1]
