"""The loop in which ranks wait for each other, and bounded requests to their store."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

ANSWER = 10.0  # seconds in which the ranks' store must answer
_silent: weakref.WeakSet[Any] = weakref.WeakSet()  # stores with an open request


class StoreGoneError(RuntimeError):
    """The ranks' store does not answer, or its host has closed the connection."""


def wait_until(over: Callable[[], bool], seconds: float, pause: float = 0.5) -> bool:
    """Whether a condition became true in time.

    Args:
        over: The condition. It may wait a moment itself, and may raise to end the wait.
        pause: The longest pause between two checks, in seconds. The first pauses are shorter.
    """
    deadline, next_pause = time.monotonic() + seconds, 0.001
    while not over():
        if time.monotonic() > deadline:
            return False
        time.sleep(min(next_pause, pause))
        next_pause *= 1.2
    return True


def seconds_between(ranks: int, least: float = 0.5) -> float:
    """Seconds between two requests of a rank, so that all ranks make at most 2,000 a second."""
    return max(least, ranks / 2000)


def rarely() -> Iterator[bool]:
    """True for the 1st, 2nd, 4th, 8th, ... item. For checks that leave a message open."""
    return ((number & (number - 1)) == 0 for number in itertools.count(1))


class Notes:
    """A store in which ranks leave notes for each other.

    Torch's own client waits for ever if the store's host has stopped. Here each request ends with
    an answer, or with `StoreGoneError`: after 10 seconds, or at once if an older request is open.
    """

    def __init__(self, store: Store, prefix: str = "notes") -> None:
        self._shared = store
        self._store = PrefixStore(prefix, store)

    def set(self, key: str, value: str) -> None:
        self._ask(lambda: self._store.set(key, value))

    def add(self, key: str, number: int) -> int:
        return int(self._ask(lambda: self._store.add(key, number)))

    def first(self, key: str, value: str) -> str:
        """Write a value if the key has none; return the key's value."""
        return str(self._ask(lambda: self._store.compare_set(key, "", value)).decode())

    def check(self, keys: list[str]) -> bool:
        """Whether all keys have a value."""
        return bool(self._ask(lambda: self._store.check(keys)))

    def get(self, key: str) -> str | None:
        """The value; None if there is none. It does not wait for a value."""
        return str(self._ask(lambda: self._store.get(key)).decode()) if self.check([key]) else None

    def _ask(self, question: Callable[[], Any]) -> Any:
        answers: list[Any] = []
        errors: list[BaseException] = []

        def ask() -> None:
            try:
                answers.append(question())
            except BaseException as error:
                errors.append(error)
            _silent.discard(self._shared)

        if self._shared not in _silent:
            asking = threading.Thread(target=ask, name="store", daemon=True)
            asking.start()
            asking.join(ANSWER)
            _silent.add(self._shared)
            if not asking.is_alive():
                _silent.discard(self._shared)
        if answers:
            return answers[0]
        why = "is gone" if errors else "does not answer"
        raise StoreGoneError(f"the ranks' store {why}: rank 0, or torchrun, may have ended")
