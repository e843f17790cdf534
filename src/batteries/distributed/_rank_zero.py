"""Code that rank 0 runs alone, first, or for a long time."""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, ParamSpec, TypeVar, overload

from batteries.distributed._collectives import alone, broadcast, on_one_rank
from batteries.distributed._groups import closed, notes, ranks_of, timeout
from batteries.distributed._launch import in_group, is_main, rank
from batteries.distributed._messages import Failure
from batteries.distributed._waiting import Notes, StoreGoneError, rarely, wait_until

P = ParamSpec("P")
T = TypeVar("T")
_SAY_EVERY = 5.0  # seconds between two signs of life of a rank 0 that works alone
_SILENCE = 60.0  # seconds without a sign of life, after which rank 0 counts as dead
_LONGEST = 86_400.0  # seconds that the others wait at most


@overload
def rank_zero_only(function: Callable[P, T]) -> Callable[P, T | None]: ...
@overload
def rank_zero_only(*, share: Literal[True]) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
def rank_zero_only(function: Callable[P, T] | None = None, *, share: bool = False) -> Any:
    """Run a function on rank 0 alone.

    >>> @rank_zero_only
    ... def announce():
    ...     print("once")
    >>> announce()
    once

    The other ranks get None and do not wait. With `@rank_zero_only(share=True)`, all ranks must
    call the function. The others wait for rank 0, at most the timeout of `setup`. They get the
    result of rank 0, with tensors on the CPU, or raise the error of rank 0. A collective inside
    such a function raises a RuntimeError.
    """
    if function is None:
        return functools.partial(rank_zero_only, share=share)

    @functools.wraps(function)
    def on_rank_zero(*args: P.args, **kwargs: P.kwargs) -> T | None:
        if not share:
            with on_one_rank(collectives=True):
                return function(*args, **kwargs) if is_main() else None
        if alone("a shared rank_zero_only function"):
            return function(*args, **kwargs)
        if not is_main():
            return broadcast(None)
        with _sharing_errors():
            result = function(*args, **kwargs)
        return broadcast(result)

    return on_rank_zero


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Let rank 0 execute a block first, then all other ranks together.

    >>> with rank_zero_first():
    ...     data = "downloaded by rank 0, read from the disk by the others"

    If rank 0 raises inside the block, the others raise the same error and do not enter the block.
    The others wait for rank 0, at most the timeout of `setup`. A collective inside the block raises
    a RuntimeError.
    """
    if alone("rank_zero_first"):
        yield
    elif is_main():
        with _sharing_errors():
            yield
        broadcast(None, check=False)
    else:
        broadcast(None, check=False)
        with on_one_rank(collectives=False):
            yield


@contextmanager
def _sharing_errors() -> Iterator[None]:
    """If a block raises, send its error to the ranks that wait in `broadcast`."""
    try:
        with on_one_rank(collectives=False):
            yield
    except BaseException as error:
        with suppress(BaseException):  # broadcast raises the error here, too
            broadcast(Failure.of(error), check=False)
        raise


@contextmanager
def others_wait(what: str = "") -> Iterator[list[str]]:
    """A block in which rank 0 may take longer than a collective's timeout.

    The others wait at its end until rank 0 has left the block, for up to a day. Rank 0 waits for
    no other rank. If rank 0 does not enter the block, the others wait as long as a collective's
    timeout. If rank 0 has left the group, is dead, or gives no sign of life for a minute, the
    others go on, and the next collective raises an error that names rank 0.

    Args:
        what: A name of the block. Rank 0 may enter some blocks alone, so the ranks' blocks are
            paired by their names and numbers.

    Yields:
        A list. Rank 0 may add texts. After the block, the others have these texts in their list,
        joined to one.
    """
    told: list[str] = []
    if not in_group():
        yield told
        return
    store = notes()
    turn = f"turn {what}{store.add(f'turns/{what}{rank()}', 1)}"
    if not is_main():
        yield told
        with suppress(StoreGoneError):
            _wait_for_rank_zero(store, turn)
            told += filter(None, [store.get(f"{turn}/done")])
        return
    over = threading.Event()
    saying = threading.Thread(target=_say_until, args=(over, store, f"{turn}/works"), daemon=True)
    saying.start()
    try:
        yield told
    finally:
        over.set()
        saying.join()
        store.set(f"{turn}/done", "".join(told))


def _say_until(over: threading.Event, store: Notes, key: str) -> None:
    with suppress(StoreGoneError):
        for number in itertools.count():
            store.set(key, str(number))
            if over.wait(_SAY_EVERY):
                return


def _wait_for_rank_zero(store: Notes, turn: str) -> None:
    word, since, now_and_then = None, time.monotonic(), rarely()

    def over() -> bool:
        nonlocal word, since
        if store.check([f"{turn}/done"]) or store.check(["left/0"]):
            return True
        if next(now_and_then) and 0 in closed(ranks_of()):
            return True
        said = store.get(f"{turn}/works")
        if said != word:
            word, since = said, time.monotonic()
        limit = timeout() if word is None else _SILENCE
        return time.monotonic() - since > limit

    wait_until(over, _LONGEST)
