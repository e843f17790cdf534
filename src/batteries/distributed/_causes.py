"""The first error of all ranks: the ranks that fail because of it report it, too."""

from __future__ import annotations

import platform

from batteries.distributed._groups import closed, notes, ranks_of
from batteries.distributed._launch import in_group, rank
from batteries.distributed._waiting import StoreGoneError

_LONG = 500  # characters of an error


class MissingRankError(RuntimeError):
    """Some ranks did not come, or have left. The text says which ones, and why."""


def first_cause(error: BaseException) -> str:
    """What ended the ranks: the report of the first rank that ended with an error.

    Where a connection is closed to a rank that said nothing, that rank was killed: it is the cause
    of the errors of the others. Does nothing but ask; nobody waits.
    """
    own = f"rank {rank()} on {platform.node()}: {type(error).__name__}: {error}"[:_LONG]
    if not in_group():
        return own
    says_who = isinstance(error, MissingRankError)  # and has closed all connections
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
    """An error as text, with what ended the ranks first where that is another."""
    own, cause = f"{type(error).__name__}: {error}", first_cause(error)
    if "; the first cause: " in own:  # it has been told
        return own
    return own if own[: _LONG // 2] in cause else f"{own}; the first cause: {cause}"
