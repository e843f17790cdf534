"""What rank 0 does alone, or first."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, ParamSpec, TypeVar, overload

from batteries.distributed.collectives import alone, being_apart, broadcast
from batteries.distributed.launch import is_main
from batteries.distributed.messages import Failure

P = ParamSpec("P")
T = TypeVar("T")


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
