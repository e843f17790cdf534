"""Identify processes, also in containers and after a reboot, and act at the end of this one."""

from __future__ import annotations

import atexit
import functools
import os
import platform
import time
from collections.abc import Callable
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

_IMPORTED = time.monotonic()


def own_process() -> dict[str, Any]:
    numbers = _numbers()
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "born": _born("self"),
        "boot": _boot() if numbers else None,
        "numbers": numbers,
    }


def is_own(process: dict[str, Any]) -> bool:
    """Whether a description is that of this process."""
    return all(process.get(name) == value for name, value in own_process().items())


def is_alive(process: dict[str, Any]) -> bool | None:
    """Whether a process is alive; None if this process cannot know.

    The host's name is not enough, because containers share it and number their processes
    separately. With the same boot and the same namespace of numbers, the pid and the time of birth
    identify a process.
    """
    own = own_process()
    told = ("boot", "numbers") if own["boot"] and process.get("boot") else ("host",)
    if os.name != "posix" or any(process.get(name) != own[name] for name in told):
        return None  # on Windows os.kill(pid, 0) would send Ctrl-C
    pid = process.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:  # another user's process
        return True
    except (OSError, OverflowError):
        return False
    return process.get("born") in (None, _born(pid))  # a new process may have the same number


def call_at_end(function: Callable[[], object]) -> Callable[[], None]:
    """Call a function once at the end of this process; return a function that cancels the call.

    A program calls the functions of atexit, the latest first. Before Python 3.13, a process that
    multiprocessing has forked calls only the functions of multiprocessing. So the function is
    registered with both.
    """

    def end() -> None:
        cancel()
        function()

    def cancel() -> None:
        atexit.unregister(end)
        at_the_end_of_a_fork.cancel()

    atexit.register(end)
    at_the_end_of_a_fork = Finalize(None, end, exitpriority=100)  # before queues are closed
    return cancel


def _born(pid: int | str) -> str | None:
    """When a process began, in clock ticks since boot; None if not known, "" if it is dead."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if state == "Z" else fields[18]


def seconds_lived() -> float:
    """Seconds since this process began or, if that is not known, since it imported this module."""
    born = _born("self")
    if born and int(born) and hasattr(time, "CLOCK_BOOTTIME"):
        began = int(born) / os.sysconf("SC_CLK_TCK")
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - began, 0.0)
    return time.monotonic() - _IMPORTED


@functools.cache
def _boot() -> str | None:
    """The id of this system's boot; None if not known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _numbers() -> str | None:
    """The namespace of process numbers, if /proc shows this process's own namespace."""
    try:
        own = Path("/proc/self").readlink().name == str(os.getpid())
        return str(Path("/proc/self/ns/pid").readlink()) if own else None
    except OSError:
        return None
