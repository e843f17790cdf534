"""The ranks of one start find each other in a store that earlier starts have used."""

from __future__ import annotations

import time
import uuid
import warnings
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from batteries.distributed._waiting import Notes, StoreGoneError, wait_until

_PATIENCE = 30.0  # seconds of a wait, after which a warning names the missing ranks


def attempt_store(store: Store, rank: int, world_size: int, timeout: timedelta) -> Store:
    """A part of a store for the processes that were started together.

    torchrun keeps one store for all its restarts, and PyTorch writes a group's addresses under the
    same keys each time. So a worker that starts before the others could connect to dead ones.
    TORCHELASTIC_RESTART_COUNT does not help: it may differ between hosts, because a host that
    restarts after another's failure does not count it. So rank 0 makes up a name for the start.

    Each process writes a number of its own under its rank and waits for an answer to that number.
    Rank 0 answers all numbers, old and new, until every rank has confirmed the name.

    Raises:
        TimeoutError: Not all ranks came in time; the message names those that are missing.
    """
    meeting = Notes(store, "attempts")
    name = str(uuid.uuid4()) if rank == 0 else _ask(meeting, rank, timeout)
    if rank == 0:
        _answer(meeting, name, world_size, timeout)
    return PrefixStore(f"attempt/{name}", store)


def _ask(store: Notes, rank: int, timeout: timedelta) -> str:
    own, seconds = str(uuid.uuid4()), timeout.total_seconds()
    store.set(f"asked/{rank}", own)
    try:
        asked = _telling(
            lambda: store.check([f"answered/{own}"]), lambda: f"rank {rank} waits for 0"
        )
        met = wait_until(asked, seconds)
    except StoreGoneError as error:
        raise TimeoutError(f"rank {rank} found no rank 0: {error}") from error
    name = store.get(f"answered/{own}") if met else None
    if name is None:
        raise TimeoutError(
            f"rank {rank} found no rank 0 in {seconds:g} s: read in its log why it ended or did "
            "not start, and check MASTER_ADDR and MASTER_PORT"
        )
    store.set(f"confirmed/{name}/{rank}", own)
    return name


def _answer(store: Notes, name: str, world_size: int, timeout: timedelta) -> None:
    answered: dict[int, str] = {}
    missing = set(range(1, world_size))

    def all_confirmed() -> bool:
        for rank in sorted(missing):
            asked = store.get(f"asked/{rank}")
            if asked and asked != answered.get(rank):
                store.set(f"answered/{asked}", name)
                answered[rank] = asked
            if store.check([f"confirmed/{name}/{rank}"]):
                missing.discard(rank)
        return not missing

    asked = _telling(all_confirmed, lambda: f"rank 0 waits for {sorted(missing)}")
    if not wait_until(asked, timeout.total_seconds()):
        raise TimeoutError(
            f"rank 0 waited {timeout.total_seconds():g} s for ranks {sorted(missing)}, which "
            "did not come: read in their logs why they ended or did not start"
        )


def _telling(over: Callable[[], bool], who: Callable[[], str]) -> Callable[[], bool]:
    """Ask the same question, and warn once if the answer is still no after 30 seconds."""
    late: float | None = time.monotonic() + _PATIENCE

    def asked() -> bool:
        nonlocal late
        answer = over()
        if not answer and late is not None and time.monotonic() > late:
            late = None
            warnings.warn(
                f"{who()} in setup() since {_PATIENCE:g} s: check whether all ranks have started, "
                "and whether one has ended",
                stacklevel=6,
            )
        return answer

    return asked
