"""The one loop in which ranks wait for each other, and questions to their store that all end."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

ANSWER = 10.0  # seconds in which the ranks' store answers, or is taken for gone
_silent: weakref.WeakSet[Any] = weakref.WeakSet()  # stores that owe an answer


class StoreGoneError(RuntimeError):
    """The ranks' store does not answer, or its host has closed the connection."""


def wait_until(over: Callable[[], bool], seconds: float, pause: float = 0.5) -> bool:
    """Whether something came true in time.

    Args:
        over: It may wait a moment itself, and may raise to end the wait.
        pause: The longest between two looks, in seconds. The first ones are short.
    """
    deadline, next_pause = time.monotonic() + seconds, 0.001
    while not over():
        if time.monotonic() > deadline:
            return False
        time.sleep(min(next_pause, pause))
        next_pause *= 1.2
    return True


def seconds_between(ranks: int, least: float = 0.5) -> float:
    """Seconds between two questions of a rank: all ask their store 2,000 times a second at most."""
    return max(least, ranks / 2000)


def rarely() -> Iterator[bool]:
    """Whether it is time for what leaves a trace each time: more and more seldom."""
    return ((number & (number - 1)) == 0 for number in itertools.count(1))


class Notes:
    """A store in which ranks leave word for each other.

    Torch's own client waits for ever where the store's host has stopped. Here each question ends:
    by an answer, or by `StoreGoneError` after 10 seconds, and at once while an older one is open.
    """

    def __init__(self, store: Store, prefix: str = "notes") -> None:
        self._shared = store
        self._store = PrefixStore(prefix, store)

    def set(self, key: str, value: str) -> None:
        self._ask(lambda: self._store.set(key, value))

    def add(self, key: str, number: int) -> int:
        return int(self._ask(lambda: self._store.add(key, number)))

    def first(self, key: str, value: str) -> str:
        """What the first rank has said under a key, this one perhaps."""
        return str(self._ask(lambda: self._store.compare_set(key, "", value)).decode())

    def check(self, keys: list[str]) -> bool:
        """Whether all of them are there."""
        return bool(self._ask(lambda: self._store.check(keys)))

    def get(self, key: str) -> str | None:
        """None where it is not there: nothing waits for it to come."""
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
        raise StoreGoneError(f"the ranks' store {why}, and with it perhaps rank 0")
