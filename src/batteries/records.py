"""The record of a run: `run.json` in its directory, and what state the run is in."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from batteries.files import PathLike, write_whole
from batteries.foreign import Most, check, parse_json, read_regular
from batteries.masking import masked_record

NAME = "run.json"
BEAT = 10.0  # seconds between two signs of life
_SILENCE = 6 * BEAT  # after which a process of another host counts as dead


def read_record(run: PathLike) -> dict[str, Any] | None:
    """What is recorded of a run; None where nothing is.

    >>> read_record("runs/nothing") is None
    True

    Raises:
        ValueError: The file is not a record.
    """
    path = Path(run, NAME)
    try:
        record: dict[str, Any] = parse_json(read_regular(path, inside=run))
        check(record, {"id": Most(str, 100), "sessions": [_SESSION]})
        if not record.get("sessions"):
            raise ValueError("it has no sessions")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(f"{path} is not the record of a run: {error}") from None
    return record


# Of what is computed with, or made paths and signals of; all else is only shown.
_SESSION = {
    **dict.fromkeys(("args", "git", "packages", "variables"), (None, dict)),
    **dict.fromkeys(("state", "started", "stopped", "born"), (None, Most(str, 100))),
    "pid": (None, int),
    "host": (None, Most(str, 1000)),
}


def write_record(run: PathLike, record: dict[str, Any]) -> None:
    """Replace what is recorded; no secret passes here.

    >>> write_record(".", {"id": "a", "sessions": [{"state": "finished"}]})
    """
    data = json.dumps(masked_record(record), indent=1, default=repr).encode()
    with write_whole(Path(run, NAME), len(data), inside=run) as file:
        file.write(data)


def state_of(run: PathLike, record: dict[str, Any]) -> str:
    """One of running, finished, stopped (by a signal), failed, and killed: it said no more.

    >>> state_of(".", {"sessions": [{"state": "finished"}]})
    'finished'
    """
    session = record["sessions"][-1]
    state = str(session.get("state", "unknown"))
    return "killed" if state == "running" and not _is_alive(Path(run), session) else state


def own_process() -> dict[str, Any]:
    """What a process is known by.

    >>> own_process()["pid"] == os.getpid()
    True
    """
    return {"host": platform.node(), "pid": os.getpid(), "born": _born(os.getpid())}


def _is_alive(run: Path, session: dict[str, Any]) -> bool:
    if session.get("host") != platform.node():
        return time.time() - (run / NAME).stat().st_mtime < _SILENCE
    pid = session.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:  # somebody else's
        return True
    except OSError:
        return False
    return session.get("born") in (None, _born(pid))  # the number may be another's now


def _born(pid: int) -> str | None:
    """When a process began, in the system's counting; None where that is not known, "" if dead."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if state == "Z" else fields[18]
