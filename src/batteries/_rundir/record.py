"""The record of a run, `run.json`, and which program may write in the run."""

from __future__ import annotations

import functools
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from batteries._files import PathLike, walk, write_whole
from batteries._foreign import Most, check, read_json
from batteries._masking import masked_record
from batteries._warnings import warn

NAME = "run.json"
SEEN = 5.0  # seconds until a rank must see the files of rank 0
_sessions: dict[Path, str] = {}  # the runs that this process records, and the ids of its sessions

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
        raise ValueError(
            f"{path} is not the record of a run: {error}. Restore it from a copy, or move the "
            "directory of the run away"
        ) from None
    return record


def write_record(run: PathLike, record: dict[str, Any]) -> None:
    """Replace the record. Secrets are masked."""
    data = json.dumps(masked_record(record), indent=1, default=repr).encode()
    with write_whole(Path(run, NAME), len(data), inside=run) as file:
        file.write(data)


def files_of(run: PathLike, name: str) -> Iterator[Path]:
    """The files with a name in a run and two levels below it, without those of runs inside it."""
    for folder, folders, files in walk(run, 2):
        if NAME in files and folder != os.fspath(run):
            folders.clear()
        elif name in (*files, *folders):
            yield Path(folder, name)


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
        warn(
            f"rank {rank()} on {platform.node()} does not see what rank 0 on {host} has written to "
            f"{directory}: each host has its own directory of this name; use a directory that all "
            "hosts share, or the ranks will not resume together",
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
