"""Errors of single batches, after which a pass goes on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any, Generic, NoReturn, TypeVar

T = TypeVar("T")


def called(name: str, function: Callable[..., T], *args: Any) -> T:
    """Call the user's function. Its errors get a note with its name and the arguments.

    Torch would take a StopIteration for the epoch's end, so it becomes another error.
    """
    try:
        return function(*args)
    except StopIteration as error:
        raise stopped(name.format(*args)) from error
    except Exception as error:
        say_where(error, name.format(*args))
        raise


def say_where(error: Exception, call: str) -> None:
    """Add a note to an error of the user's code: the call that raised it (from Python 3.11)."""
    note = f"in {call}"
    if hasattr(error, "add_note") and note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def stopped(name: str) -> RuntimeError:
    """The error for a StopIteration that is not the end of the epoch."""
    return RuntimeError(
        f"{name} raised StopIteration, which would have ended the epoch as if it were complete; "
        "a next() inside it may have met the end of an iterator: give next() a default or catch "
        "the end"
    )


class Failed:
    """The error of a batch, in the batch's place."""

    def __init__(self, error: Exception, bare: bool = False) -> None:
        """Drop the traceback's outermost frame; with `bare`, the whole traceback."""
        trace = error.__traceback__
        self._error: Exception | None = error.with_traceback(
            None if bare or trace is None else trace.tb_next
        )

    def throw(self) -> NoReturn:
        """Raise the error. Its traceback then keeps no frame of the pass, and so no workers."""
        error, self._error = self._error, None
        assert error is not None
        try:
            raise error
        finally:
            del error, self


class Going(Iterator[T], Generic[T]):
    """An iterator over a generator's items that raises each `Failed` and can go on after it."""

    def __init__(self, items: Generator[Any, None, None], of: Any = None) -> None:
        self._items = items
        self._of = of

    def __next__(self) -> T:
        item = next(self._items)
        if isinstance(item, Failed):
            del self
            item.throw()
        return item  # type: ignore[no-any-return]

    @property
    def _workers(self) -> list[Any]:
        """The worker processes, from the first batch on; torch's iterators have this name too."""
        running = self._of and self._of.running()
        return getattr(running, "_workers", [])

    def close(self) -> None:
        self._items.close()
