"""Stop at the boundary of a step, all ranks at the same one, before the machine is taken away."""

from __future__ import annotations

import itertools
import os
import select
import signal
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import torch.distributed as dist

from batteries import distributed

_SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
]
_LOOK_EVERY = 0.5  # seconds between two looks at whether another rank was told
_SAME = 1.0  # seconds within which signals are one: Slurm and torchrun send both
_guards = itertools.count()


class PreemptionGuard:
    """Lets the loop end where it can be resumed, when SIGTERM, SIGINT or SIGUSR1 comes.

    >>> with PreemptionGuard() as guard:
    ...     for step in range(3):
    ...         if guard.stop():  # after each step, on every rank
    ...             raise SystemExit(guard.exit_code)  # having saved with `manager.save_last(...)`

    All ranks stop after the same step, whichever of them was told. That costs nothing while nobody
    is: each rank counts its steps, and the count is compared when the signal has come. In
    evaluation, where ranks have different numbers of batches, look at `guard.requested` and leave.

    When a rank is dead or stopped, the others do not wait for it: the next `stop()` is True, and a
    rank that hangs in a collective leaves after `patience` seconds. A second signal, a second or
    more after the first, leaves at once. All leave with `exit_code`.

    Args:
        patience: Seconds for the ranks to agree, before they are taken for dead.

    Raises:
        RuntimeError: It was entered outside the main thread, which alone gets signals.
    """

    exit_code = 75  # EX_TEMPFAIL: try again later

    # The handlers do nothing. Python writes each signal to a socket, from C, though the program
    # hangs in a collective; a thread reads it, and does the rest.

    def __init__(self, patience: float = 5.0) -> None:
        self._patience = patience
        self._lock = threading.Lock()
        self._passed = 0  # boundaries
        self._requested = False
        self._last = 0  # the boundary at which to stop, once agreed
        self._agreed = threading.Event()
        self._leaving = False
        self._number = next(_guards)
        self._store: Any = None

    @property
    def requested(self) -> bool:
        """Whether this rank, or another, was told to stop."""
        return self._requested

    def stop(self) -> bool:
        """Whether to stop here. Every rank calls it after every step.

        >>> PreemptionGuard().stop()
        False
        """
        with self._lock:
            if not self._requested:
                self._passed += 1
                return False
        self._agreed.wait()
        self._passed += 1
        self._leaving = self._passed >= self._last
        return self._leaving

    def __enter__(self) -> PreemptionGuard:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "PreemptionGuard was entered in another thread than the main one, which alone gets "
                "signals: enter it there"
            )
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._before = {number: signal.signal(number, _nothing) for number in _SIGNALS}
        self._fd_before = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="preemption", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._leaving = True
        signal.set_wakeup_fd(self._fd_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._write.send(b"\0")  # the thread ends
        self._thread.join()
        self._read.close()
        self._write.close()

    # ---------------------------------------------------------------- in the thread

    def _watch(self) -> None:
        told = None
        while True:
            readable, _, _ = select.select([self._read], [], [], _LOOK_EVERY)
            if readable:
                if b"\0" in self._read.recv(4096):
                    return
                if told is not None and time.monotonic() - told > _SAME:
                    os._exit(self.exit_code)
                told = told or time.monotonic()
            if not self._requested and (told is not None or self._others_were_told()):
                told = told or time.monotonic()
                threading.Thread(target=self._agree, daemon=True).start()
                self._requested = True

    def _others_were_told(self) -> bool:
        with suppress(Exception):  # the store's host may be gone, which collectives will tell
            store = self._own_store()
            return store is not None and bool(store.check(["told"]))
        return False

    def _own_store(self) -> Any:
        """A connection of our own: a wait in the group's own one would hold it."""
        if self._store is None and dist.is_available() and dist.is_initialized():
            shared = dist.distributed_c10d._get_default_store()
            self._store = dist.PrefixStore(f"preemption/{self._number}", shared.clone())  # type: ignore[attr-defined]
        return self._store

    def _agree(self) -> None:
        """Settle where to stop: the latest of the boundaries that the ranks can still stop at."""
        alone = distributed.world_size() == 1
        finding = threading.Thread(target=self._find_last, daemon=True)
        finding.start()
        finding.join(0.6 * self._patience)
        if self._agreed.is_set():
            return
        self._agreed.set()  # with 0: at once
        time.sleep(0.4 * self._patience)
        if not self._leaving and not alone:
            os._exit(self.exit_code)  # in a collective with the dead

    def _find_last(self) -> None:
        with self._lock:
            self._requested = True
            first = self._passed + 1
        with suppress(Exception):  # without the store there is no agreement
            store = self._own_store()
            if store is not None:
                store.set("told", "")
                store.set(f"first/{distributed.rank()}", str(first))
                names = [f"first/{rank}" for rank in range(distributed.world_size())]
                while not store.check(names):
                    time.sleep(0.02)
                self._last = max(int(store.get(name)) for name in names)
            self._agreed.set()


def ignore_signals() -> None:
    """Let a DataLoader worker live through the signals that tell the program to stop.

    >>> loader = DataLoader(range(4), num_workers=1)  # whose workers do so

    SIGINT and SIGUSR1 are ignored, and so is the first SIGTERM; a second one ends the worker.
    """
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _nothing(*_: object) -> None:
    """What a signal does to the program itself."""
