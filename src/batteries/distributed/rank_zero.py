"""What rank 0 does alone, first, or for long."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Literal, ParamSpec, TypeVar, overload

import torch.distributed as dist

from batteries.distributed.collectives import alone, being_apart, broadcast
from batteries.distributed.launch import in_group, is_main, notes
from batteries.distributed.messages import Failure

P = ParamSpec("P")
T = TypeVar("T")
_LOOK = timedelta(seconds=5)  # how often to see whether rank 0 is there


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

    The other ranks get None and do not wait. With `@rank_zero_only(share=True)` they wait and get
    the result, or raise the error that rank 0 raised; all ranks must then call it.
    """
    if function is None:
        return functools.partial(_rank_zero_only, share=share)
    return _rank_zero_only(function, share)


def _rank_zero_only(function: Callable[P, T], share: bool) -> Callable[P, T | None]:
    @functools.wraps(function)
    def on_rank_zero(*args: P.args, **kwargs: P.kwargs) -> T | None:
        if not share:
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
    """Let rank 0 go through a block first, then all the others together.

    >>> with rank_zero_first():
    ...     data = "downloaded by rank 0, read from the disk by the others"

    When rank 0 raises inside the block, the others raise the same error instead of entering it.
    """
    if alone("rank_zero_first"):
        yield
    elif is_main():
        with _sharing_errors():
            yield
        broadcast(None, check=False)
    else:
        broadcast(None, check=False)
        with being_apart():
            yield


@contextmanager
def _sharing_errors() -> Iterator[None]:
    """Send the error that ends a block to the ranks that wait in `broadcast`."""
    try:
        with being_apart():
            yield
    except BaseException as error:
        with suppress(BaseException):  # `broadcast` raises what it has told; so do we, below
            broadcast(Failure.of(error), check=False)
        raise


@contextmanager
def others_wait() -> Iterator[None]:
    """A block in which rank 0 may take longer than collectives wait for each other.

    >>> with others_wait():
    ...     pass

    The others wait at its end until rank 0 is through. Those that do not come do not matter; for
    a rank 0 that does not come they wait as long as a collective would, and go on.
    """
    if not in_group():
        yield
        return
    store = notes()
    turn = f"turn {store.add(f'turns/{dist.get_rank()}', 1)}"
    if not is_main():
        yield
        with suppress(dist.DistStoreError):
            store.wait([f"{turn}/begun"])
            while not (_set_soon(store, f"{turn}/done") or store.check(["left/0"])):
                pass
        return
    store.set(f"{turn}/begun", "")
    try:
        yield
    finally:
        store.set(f"{turn}/done", "")


def _set_soon(store: Any, key: str) -> bool:
    with suppress(dist.DistStoreError):
        store.wait([key], _LOOK)
        return True
    return False
