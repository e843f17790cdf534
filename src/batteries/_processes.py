"""Which process is which, also in containers and after a reboot."""

from __future__ import annotations

import functools
import os
import platform
import time
from pathlib import Path
from typing import Any

_IMPORTED = time.monotonic()


def own_process() -> dict[str, Any]:
    """What this process is known by."""
    numbers = _numbers()
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "born": _born("self"),
        "boot": _boot() if numbers else None,
        "numbers": numbers,
    }


def is_own(process: dict[str, Any]) -> bool:
    """Whether it is this process that is described."""
    return all(process.get(name) == value for name, value in own_process().items())


def is_alive(process: dict[str, Any]) -> bool | None:
    """Whether a process is there; None where that cannot be known from here.

    Names of hosts do not tell: containers share one, and number their processes anew. Of two
    processes under the same start of a system, in the same namespace, the number and the time of
    birth tell all.
    """
    own = own_process()
    told = ("boot", "numbers") if own["boot"] and process.get("boot") else ("host",)
    if os.name != "posix" or any(process.get(name) != own[name] for name in told):
        return None  # on Windows signal 0 is Ctrl-C
    pid = process.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:  # somebody else's
        return True
    except (OSError, OverflowError):
        return False
    return process.get("born") in (None, _born(pid))  # the number may be another's now


def _born(pid: int | str) -> str | None:
    """When a process began, in the system's counting; None where that is not known, "" if dead."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if state == "Z" else fields[18]


def seconds_lived() -> float:
    """Since this process began; where that is not known, since it imported this."""
    born = _born("self")
    if born and int(born) and hasattr(time, "CLOCK_BOOTTIME"):
        began = int(born) / os.sysconf("SC_CLK_TCK")
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - began, 0.0)
    return time.monotonic() - _IMPORTED


@functools.cache
def _boot() -> str | None:
    """The start of this system; None where it does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _numbers() -> str | None:
    """The namespace that numbers the processes, if /proc shows that one."""
    try:
        own = Path("/proc/self").readlink().name == str(os.getpid())
        return str(Path("/proc/self/ns/pid").readlink()) if own else None
    except OSError:
        return None
