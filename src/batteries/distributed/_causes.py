"""The first error of all ranks, which the ranks that fail because of it report too."""

from __future__ import annotations

import platform

from batteries.distributed._groups import closed, notes, ranks_of
from batteries.distributed._launch import in_group, rank
from batteries.distributed._waiting import StoreGoneError

_LONG = 500  # characters of an error text


class MissingRankError(RuntimeError):
    """Some ranks did not come, or have left. The text says which ranks, and why."""


def first_cause(error: BaseException) -> str:
    """The report of the first rank that ended with an error; no rank waits.

    If the connection to a rank is closed and the rank has left no report, it was killed. Then it is
    the cause of the other errors.
    """
    own = f"rank {rank()} on {platform.node()}: {type(error).__name__}: {error}"[:_LONG]
    if not in_group():
        return own
    says_who = isinstance(error, MissingRankError)  # this rank has then closed its connections
    gone = closed(ranks_of()) if isinstance(error, RuntimeError) and not says_who else []
    try:
        store = notes()
        dead = [other for other in gone if not store.check([f"left/{other}"])]
        if dead:
            hosts = {other: store.get(f"host/{other}") for other in dead}
            told = ", ".join(f"rank {other} on {host}" for other, host in hosts.items())
            own = f"{told} ended without an error message: was it killed?"
        return store.first("left/first", own)
    except StoreGoneError as silent:
        told = ", ".join(f"rank {other}" for other in gone)
        return f"{told} ended, and {silent}" if gone else own


def with_cause(error: BaseException) -> str:
    """An error as text, followed by the first cause if that is another error."""
    own, cause = f"{type(error).__name__}: {error}", first_cause(error)
    if "; the first cause: " in own:
        return own
    return own if own[: _LONG // 2] in cause else f"{own}; the first cause: {cause}"
