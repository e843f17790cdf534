"""The calls that wait for a tracker: a queue with a bound, which a thread empties at intervals."""

from __future__ import annotations

import queue
import threading
from typing import Any

Call = tuple[Any, str, tuple[Any, ...]]  # a logger, a method, its arguments
BOUND = 10_000  # calls that may wait
PATIENCE = 60.0  # seconds that `close` waits for a tracker, and a call once for a full queue
_MANY = BOUND // 2  # calls that wake the thread at once
_GATHER = 0.1  # seconds in which calls are gathered, to be written together
_IDLE = 600  # intervals without a call, after which the thread sleeps until the next call


class Calls:
    """The queue. The thread checks it at intervals. A call wakes the thread only if it is long.

    Waking the thread would take tens of microseconds in each call.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Call] = queue.SimpleQueue()  # its put is safe in a finalizer
        self._hurry, self._room = threading.Event(), threading.Event()
        self._patient = True

    def __len__(self) -> int:
        return self._queue.qsize()

    def has_room(self, wait: bool) -> bool:
        """Whether a call may be added; with `wait`, it waits once for room in a full queue.

        So a loop that logs faster than the tracker writes is slowed down and loses nothing.
        """
        waiting = len(self)
        if waiting >= _MANY:
            self.wake()
        if waiting < BOUND:
            return True
        self._room.clear()
        if len(self) >= BOUND and wait and self._patient:
            self._patient = self._room.wait(PATIENCE)
        return len(self) < BOUND

    def put(self, call: Call) -> None:
        self._queue.put(call)

    def wake(self) -> None:
        """Let the thread take the calls now."""
        self._hurry.set()

    # ---------------------------------------------------------------- in the thread

    def first(self) -> list[Call]:
        """Wait for a call."""
        return [self._queue.get()]

    def gathered(self) -> list[Call]:
        """The calls of the last interval, up to the end of a logger."""
        for _ in range(_IDLE):
            self._hurry.wait(_GATHER)
            if len(self):
                break
        some = self.first()
        self._hurry.clear()
        while len(some) < BOUND and some[-1][1] != "_end" and len(self):
            some += self.first()
        self._patient = True
        self._room.set()
        return some
