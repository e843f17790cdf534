"""The record of a run: `run.json` in its directory, and what state the run is in."""

from __future__ import annotations

import functools
import json
import os
import platform
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from batteries._files import PathLike, write_whole
from batteries._foreign import Most, check, parse_json, read_regular
from batteries._masking import masked_record
from batteries._processes import is_alive

NAME = "run.json"
BEAT = 3.0  # seconds between two signs of life
WATCH = 20.0  # seconds without one, after which a process that cannot be asked counts as dead
SEEN = 5.0  # seconds in which a rank sees what rank 0 has written
_LONG_AGO = 3600.0  # seconds; what was last written before is not watched to be shown
_looks: dict[Path, tuple[Any, float]] = {}  # the first look at a sign, and when that was
_sessions: dict[Path, str] = {}  # the runs that this process records, and its sessions in them

# Of what is computed with, or made paths and signals of; all else is only shown.
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
    """What is recorded of a run; None where nothing is.

    Raises:
        ValueError: The file is not a record.
    """
    path = Path(run, NAME)
    try:
        record: dict[str, Any] = parse_json(read_regular(path, inside=run))
        check(record, SCHEMA)
        if not record.get("sessions"):
            raise ValueError("it has no sessions")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(f"{path} is not the record of a run: {error}") from None
    return record


def write_record(run: PathLike, record: dict[str, Any]) -> None:
    """Replace what is recorded; no secret passes here."""
    data = json.dumps(masked_record(record), indent=1, default=repr).encode()
    with write_whole(Path(run, NAME), len(data), inside=run) as file:
        file.write(data)


def state_of(run: PathLike, record: dict[str, Any]) -> str:
    """One of running, finished, stopped (by a signal), failed, and killed: it said no more.

    A run of another host, or of another container, counts as running for 40 seconds after it was
    written. In the hour after that it is watched for up to 20 seconds: clocks may differ.
    """
    session = record["sessions"][-1]
    state = str(session.get("state", "unknown"))
    if state != "running":
        return state
    alive = is_alive(session)
    if alive is None:  # clocks of two hosts are compared here, and only here: it is shown, no more
        age = abs(time.time() - Path(run, NAME).stat().st_mtime)
        alive = age < 2 * WATCH or (age < _LONG_AGO and shows_life(run))
    return "running" if alive else "killed"


def files_of(run: PathLike, name: str, depth: int = 2, *, inside: bool = False) -> Iterator[Path]:
    """The files of a run by a name: in its directory and two levels below, not of other runs."""
    try:
        with os.scandir(run) as entries:
            found = list(entries)
    except OSError:
        return
    if inside and any(entry.name == NAME for entry in found):
        return
    for entry in found:
        if entry.name == name:
            yield Path(entry.path)
        elif depth and entry.is_dir(follow_symlinks=False):
            yield from files_of(entry.path, name, depth - 1, inside=True)


# ---------------------------------------------------------------- signs of life

# A process that records a run touches its run.json. What counts is that this moves while somebody
# looks, for at most 20 seconds by his own clock: no time of another clock is compared with it.


def glance(run: PathLike) -> None:
    """Look at the sign of life of a run: who looks at all first waits once for all."""
    _looks.setdefault(Path(run, NAME), (_sign(run), time.monotonic()))


def shows_life(run: PathLike) -> bool:
    """Whether somebody records a run, seen by a sign that moves."""
    from batteries.distributed._waiting import wait_until  # here: a list of runs needs no torch

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
        with path.open("rb") as file:  # a network file system asks its server then
            status = os.fstat(file.fileno())
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def beat(run: PathLike) -> None:
    """Move the sign of life of a run, unless another process records it now."""
    if replaced_in(run) is None:
        os.utime(Path(run, NAME))


# ---------------------------------------------------------------- who may write


def hold(run: PathLike, session: str) -> None:
    """Note that this process records a run, by the session that it added."""
    _sessions[Path(run).resolve()] = session


def check_held(directory: PathLike) -> None:
    """Raise if this process recorded the run of a directory, and another one does now.

    Whatever writes into a run asks it first: the last session in `run.json` is the one token.

    Raises:
        RuntimeError: It says which.
    """
    newer = replaced_in(directory)
    if newer is not None:
        raise RuntimeError(
            f"{directory} belongs to a newer run by now (process {newer.get('pid')} on "
            f"{newer.get('host')}, since {newer.get('started')}): this one no longer writes there; "
            "stop one of the two, or begin another run with new=True"
        )


def check_seen(run: PathLike, session: str, host: str) -> None:
    """Warn if this rank does not see the session that rank 0 has recorded."""
    from batteries.distributed._waiting import wait_until

    def seen() -> bool:
        with suppress(OSError, ValueError):
            sessions = (read_record(run) or {"sessions": []})["sessions"]
            return any(each.get("id") == session for each in sessions)
        return False

    if not wait_until(seen, SEEN):
        warn_apart(run, host)


def warn_apart(directory: PathLike, host: str) -> None:
    """Warn that this rank has another directory than rank 0."""
    from batteries.distributed import rank

    warnings.warn(
        f"rank {rank()} on {platform.node()} does not see what rank 0 on {host} has written to "
        f"{directory}: each has a directory of its own under this name; use one that all hosts "
        "share, or the ranks will not resume together",
        stacklevel=4,
    )


def replaced_in(directory: PathLike) -> dict[str, Any] | None:
    """The session that has replaced this process's own in the run of a directory."""
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
