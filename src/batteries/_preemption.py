"""Stop all ranks after the same step, before the machine is taken away."""

from __future__ import annotations

import functools
import math
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from batteries._numbers import as_seconds
from batteries._processes import seconds_lived
from batteries._warnings import warn
from batteries.distributed._launch import in_group
from batteries.distributed._waiting import seconds_between

_SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
_SAME = 1.0  # seconds in which repeated signals count once: Slurm and torchrun may both send it
_POKE = b"\0"  # wakes the thread; no signal has this number

AT_ONCE, NEVER = 0.0, math.inf  # steps at which to stop
_saves: deque[float] = deque(maxlen=5)  # the durations of this process's last saves, in seconds


class _Code(int):
    """An exit code with the reason."""

    why: str


class PreemptionGuard:
    """Tells the loop to stop after SIGTERM, SIGINT or SIGUSR1, or before a time limit.

    >>> with PreemptionGuard() as guard:
    ...     for step in range(3):
    ...         if guard.stop():  # after each step, on every rank
    ...             raise SystemExit(guard.exit_code)  # first save: `manager.save_last(...)`

    A signal to one rank stops all ranks after the same step. Until a signal comes, `stop` sends
    nothing to other ranks. In evaluation, where ranks may have different numbers of batches, leave
    the loop when `guard.requested` is True.

    If a rank is dead or does not answer, the next `stop()` of the others is True, and a rank that
    hangs in a collective exits after `patience` seconds. If the same signal comes again after a
    second or more, the process exits at once. Only a second SIGTERM after `stop` was True is
    ignored, because torchrun may have sent it. Such exits save nothing, and have the code
    `exit_code`.

    With a time limit, the ranks stop while there is time for a step and a save. This time is the
    sum of the longest time between two calls of `stop`, twice the longest of the last five saves,
    and `reserve`. Saves of `CheckpointManager` and `save_checkpoint` are measured. A Slurm job's
    limit is read from `SLURM_JOB_END_TIME`, and the earlier limit counts.

    Args:
        patience: The time in which the ranks must agree. A rank answers in the middle of a step, so
            a step may take longer. Each time is in seconds, a timedelta, or a text: "8h50m".
        time_limit: The time that this process may take, from its start.
        reserve: The time to keep before the limit for everything that is not measured.

    Attributes:
        exit_code: 75, for "start again". If a run ends with this code, its record has the reason.

    Raises:
        RuntimeError: The guard was entered outside of the main thread, which alone gets signals, or
            for the second time.
        TypeError: A time is neither a number, a text nor a timedelta.
        ValueError: A time cannot be read, or is negative.
    """

    exit_code: int = 75  # EX_TEMPFAIL: try again later

    # The signal handlers only set attributes. Python also writes each signal to a socket, from C,
    # even if the program hangs in a collective. One thread reads the socket and handles deadlines;
    # it waits for nothing else. Another thread talks to the ranks' store, and may hang there if the
    # store's host is gone.

    def __init__(
        self,
        patience: str | float | timedelta = 5.0,
        *,
        time_limit: str | float | timedelta | None = None,
        reserve: str | float | timedelta = 30.0,
    ) -> None:
        self._patience = as_seconds(patience, "patience")
        self._ends = _ends(time_limit)  # the end by the monotonic clock, and the limit's name
        self._reserve = as_seconds(reserve, "reserve")
        self._longest = 0.0  # seconds between two calls of stop()
        self._at: float | None = None  # the time of the last call
        self._why: str | None = None
        self._changed = threading.Condition()
        self._passed = 0  # calls of stop(), each after a step
        self._offer: int | None = None  # the first step after which this rank can stop
        self._last: float | None = None  # the step after which all stop, once it is known
        self._requested = False
        self._asked: float | None = None  # when this rank began to agree with the others
        self._leaving = False  # stop() was True
        self._closing = False
        self._failed = False  # an error or SystemExit has left the block
        self._store: Any = None
        self._look = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def requested(self) -> bool:
        """Whether a rank was asked to stop, or the time limit is near."""
        self._look_at_the_clock(time.monotonic())
        if self._requested:
            self._explain()
        return self._requested

    @property
    def why(self) -> str | None:
        """The reason to stop, such as "SIGTERM (rank 0)"; None before."""
        return self._why

    def request(self, why: str = "the program asked for it") -> None:
        """Ask all ranks to stop, as a signal does. A call on one rank is enough.

        The attribute `why` and the run's record get the reason `why`.

        >>> with PreemptionGuard() as guard:
        ...     guard.request("the disk is nearly full")
        ...     print(guard.stop(), guard.why)
        True the disk is nearly full
        """
        self._why = self._why or why
        self._requested = True
        self._begin()
        self._look.set()

    def _look_at_the_clock(self, now: float) -> None:
        if self._ends is None or self._requested:
            return
        end, limit = self._ends
        if end - now <= 2 * max(_saves, default=0.0) + self._longest + self._reserve:
            self.request(f"{limit}, which ends in {max(end - now, 0):.0f} s")

    def stop(self) -> bool:
        """Whether to stop now; once True, always True. Every rank calls it after every step."""
        now = time.monotonic()
        if self._at is None and self._ends is None and not self._requested:
            warn(
                "PreemptionGuard was not entered, so it gets no signals: put the loop into "
                "'with PreemptionGuard() as guard:'",
            )
        self._longest = max(self._longest, now - (self._at or now))
        self._at = now
        self._look_at_the_clock(now)
        with self._changed:
            self._passed += 1
            if self._offer is not None:  # the threads end this wait
                self._changed.wait_for(lambda: self._last is not None)
            elif self._requested and self._last is None and _alone():
                self._last = AT_ONCE
            self._leaving = self._last is not None and self._passed >= self._last
        if self._leaving:
            self._explain()
        return self._leaving

    def _explain(self) -> None:
        self.exit_code = _Code(type(self).exit_code)
        self.exit_code.why = self._why or "another rank"

    def __enter__(self) -> PreemptionGuard:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "PreemptionGuard was not entered in the main thread, but only that thread gets "
                "signals: enter it in the main thread"
            )
        if self._threads:
            raise RuntimeError(
                "this guard was entered before: make a new PreemptionGuard for each block"
            )
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        self._fd_before = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        _undo_in_children()
        targets = (self._listen, self._follow)
        self._threads = [
            threading.Thread(target=target, name="preemption", daemon=True) for target in targets
        ]
        for thread in self._threads:
            thread.start()
        self._at = time.monotonic()  # so the first interval counts, in which a model may compile
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._failed = kind is not None
        self._closing = True
        self._look.set()
        self._poke()
        listening, following = self._threads
        listening.join()
        following.join(timeout=1.0)  # it hangs if the store's host is gone
        self._restore()
        self._read.close()
        self._write.close()

    def _handle(self, number: int, _: object) -> None:
        self._why = self._why or signal.Signals(number).name
        self._requested = True  # without a lock, which the interrupted code may hold

    def _restore(self) -> None:
        signal.set_wakeup_fd(self._fd_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        ending = self._leaving and self._failed  # by SystemExit
        if ending and self._before[signal.SIGTERM] is signal.SIG_DFL:
            # torchrun sends SIGTERM when another rank has exited; this rank may still be writing.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    # ---------------------------------------------------------------- the thread of the signals

    def _listen(self) -> None:
        told: dict[int, float] = {}
        while not self._closing:
            for number in self._heard():
                first = told.setdefault(number, time.monotonic())
                # A repeated SIGTERM may be torchrun's, because another rank has exited.
                excused = self._leaving and number == signal.SIGTERM
                if time.monotonic() - first > _SAME and not excused:
                    self._leave(f"{signal.Signals(number).name} came a second time")
                self.request(signal.Signals(number).name)
            self._keep_deadlines()

    def _heard(self) -> list[int]:
        """The signals that came; empty if it is time to check a deadline."""
        due = self._asked is not None and self._last in (None, AT_ONCE) and not self._leaving
        self._read.settimeout(0.1 if due else None)
        try:
            # Other signals arrive here too, such as SIGCHLD when a worker has ended.
            return [number for number in self._read.recv(4096) if number in _SIGNALS]
        except TimeoutError:
            return []

    def _keep_deadlines(self) -> None:
        if self._asked is None:
            return
        taken = time.monotonic() - self._asked
        if taken > 0.7 * self._patience:  # no effect if the ranks have agreed; else the store hangs
            self._settle(AT_ONCE)
        if taken > self._patience and self._last == AT_ONCE and not (self._leaving or _alone()):
            self._leave(f"not all ranks answered, and no step ended in {self._patience:g} s")

    def _leave(self, why: str) -> None:
        if not self._closing:
            os.write(2, f"PreemptionGuard: {why}; leaving without a save\n".encode())
            os._exit(self.exit_code)

    def _begin(self) -> None:
        """Start the time in which the ranks must agree."""
        with self._changed:
            if self._asked is None and self._store is not None:
                self._asked = time.monotonic()
                self._poke()

    def _settle(self, last: float) -> None:
        with self._changed:
            if self._last is None:
                self._last = last
                self._changed.notify_all()

    def _poke(self) -> None:
        with suppress(OSError):  # a full socket wakes the thread too
            self._write.send(_POKE)

    # ---------------------------------------------------------------- the thread of the store

    def _follow(self) -> None:
        pause = seconds_between(1)
        while not self._closing:
            with suppress(Exception):  # if the store's host is gone, collectives raise
                if self._store is None and (store := _own_store()) is not None:
                    pause = seconds_between(dist.get_world_size())
                    self._store = store
                if self._store is not None and (self._requested or self._store.check(["told"])):
                    self._agree()
            if self._last is not None:
                return
            self._look.wait(pause)
            self._look.clear()
        with suppress(Exception):
            if self._store is not None and not self._failed:
                # No rank takes more steps, so the others need not wait for this rank.
                _decide(self._store, NEVER)

    def _agree(self) -> None:
        """Agree on the last step: the latest of the steps after which the ranks can stop.

        Each rank offers the end of its current step, so no rank waits in vain. A rank that gives up
        writes AT_ONCE under the same key. The first value under the key counts for all.
        """
        self._requested = True
        self._begin()
        with self._changed:
            if self._offer is None:
                self._offer = self._passed + 1
        own = f"{self._why} (rank {dist.get_rank()})"
        self._why = self._store.compare_set("told", "", own).decode()  # the first reason counts
        self._store.set(f"offer/{dist.get_rank()}", str(self._offer))
        ranks = dist.get_world_size()
        offers = [f"offer/{rank}" for rank in range(ranks)]
        pause = 0.02 if dist.get_rank() == 0 else seconds_between(ranks, 0.08) / 4
        assert self._asked is not None
        while not self._closing:
            if self._store.check(["last"]):
                return self._settle(_decide(self._store, NEVER))  # reads the decision
            if dist.get_rank() == 0 and self._store.check(offers):
                latest = max(int(self._store.get(offer)) for offer in offers)
                return self._settle(_decide(self._store, latest))
            if time.monotonic() - self._asked > 0.6 * self._patience:
                return self._settle(_decide(self._store, AT_ONCE))
            time.sleep(pause)
        return None


def _ends(time_limit: str | float | timedelta | None) -> tuple[float, str] | None:
    """The end of the time by the monotonic clock, and the limit's name; None without a limit."""
    now, ends = time.monotonic(), []
    if time_limit is not None:
        seconds = as_seconds(time_limit, "time_limit")
        ends.append((now - seconds_lived() + seconds, f"the time limit of {time_limit}"))
    with suppress(ValueError):
        slurm = float(os.environ.get("SLURM_JOB_END_TIME", ""))  # since 1970
        if slurm > 0:
            ends.append((now + slurm - time.time(), "Slurm's time limit"))
    return min(ends, default=None)


@contextmanager
def timed_save() -> Iterator[None]:
    """Measure a save, for guards with a time limit."""
    begun = time.monotonic()
    yield
    _saves.append(time.monotonic() - begun)


def _alone() -> bool:
    return not in_group() or dist.get_world_size() == 1


def _own_store() -> Any:
    """A new connection to the ranks' store; None for a single rank.

    A wait on the group's own connection would block that connection. Guards are numbered on each
    rank. Guards with the same number share a part of the store.
    """
    if _alone():
        return None
    shared = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
    number = shared.add(f"preemption/guards/{dist.get_rank()}", 1)
    return dist.PrefixStore(f"preemption/{number}", shared)  # type: ignore[attr-defined]


def _decide(store: Any, last: float) -> float:
    """Write the last step if no rank has written one; return the first that was written."""
    return float(store.compare_set("last", "", str(float(last))))


@functools.cache  # once for the process
def _undo_in_children() -> None:
    """Restore the signal handlers in forked children, so that `terminate()` ends them.

    Signals are blocked during a fork. Otherwise a signal to the new child could reach the parent's
    socket.
    """
    held = threading.local()

    def hold() -> None:
        held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

    def go_on() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, held.mask)

    def undo() -> None:
        guard = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        if isinstance(guard, PreemptionGuard):
            guard._leaving = False
            guard._restore()
            signal.set_wakeup_fd(-1)
        go_on()

    os.register_at_fork(before=hold, after_in_parent=go_on, after_in_child=undo)


@contextmanager
def holding_signals() -> Iterator[None]:
    """Block signals for children that start in the block, until they call `ignore_signals`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals() -> None:
    """Let a DataLoader worker survive the signals that ask the program to stop.

    SIGINT, SIGUSR1 and the first SIGTERM are ignored. Another SIGTERM, more than a second after the
    first, ends the worker, even if it hangs in a library.
    """
    read, write = socket.socketpair()
    write.setblocking(False)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)  # it reaches the socket all the same
    signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_end_at_the_second, args=(read, write), daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _end_at_the_second(read: socket.socket, write: socket.socket) -> None:
    first = None
    while write.fileno() >= 0:
        if signal.SIGTERM in read.recv(4096):
            first = first or time.monotonic()
            if time.monotonic() - first > _SAME:
                os._exit(0)  # torch expects 0 from a worker that it terminates
