"""The ranks that were started together find each other in a store that has seen others."""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

_POLL = 0.01  # seconds between two looks of rank 0 at who has come


def attempt_store(store: Store, rank: int, world_size: int, timeout: timedelta) -> Store:
    """The part of a store that belongs to the processes that were started together.

    >>> store = torch.distributed.HashStore()
    >>> ours = attempt_store(store, rank=0, world_size=1, timeout=timedelta(seconds=1))
    >>> ours.set("address", "here")
    >>> again = attempt_store(store, rank=0, world_size=1, timeout=timedelta(seconds=1))
    >>> again.check(["address"])
    False

    torchrun keeps one store for all its restarts, and PyTorch puts a group's addresses under the
    same keys each time: a worker that is quicker than its peers would connect to dead ones. What
    torchrun says of the attempt does not tell them apart: on several hosts
    TORCHELASTIC_RESTART_COUNT may differ, because a host that restarts for another's sake does not
    count it. So rank 0 makes up a name and tells it to those it meets.

    Each process puts a number of its own under its rank and waits for an answer to that number;
    rank 0 answers what it finds, old or new, until every rank has confirmed the name.

    Raises:
        TimeoutError: Not all ranks came in time; the message names those that did not.
    """
    name = str(uuid.uuid4()) if rank == 0 else _ask(store, rank, timeout)
    if rank == 0:
        _answer(store, name, world_size, timeout)
    return PrefixStore(f"attempt/{name}", store)


def _ask(store: Store, rank: int, timeout: timedelta) -> str:
    own = str(uuid.uuid4())
    store.set(f"asked/{rank}", own)
    try:
        store.wait([f"answered/{own}"], timeout)
    except RuntimeError as error:  # DistStoreError: no answer, or the host of the store is gone
        raise TimeoutError(
            f"rank {rank} found no rank 0 in {timeout.total_seconds():g} s: {error}"
        ) from error
    name = str(store.get(f"answered/{own}").decode())
    store.set(f"confirmed/{name}/{rank}", own)
    return name


def _answer(store: Store, name: str, world_size: int, timeout: timedelta) -> None:
    answered: dict[int, bytes] = {}
    missing = set(range(1, world_size))
    deadline = time.monotonic() + timeout.total_seconds()
    while missing:
        for rank in sorted(missing):
            asked = store.get(f"asked/{rank}") if store.check([f"asked/{rank}"]) else None
            if asked and asked != answered.get(rank):
                store.set(f"answered/{asked.decode()}", name)
                answered[rank] = asked
            if store.check([f"confirmed/{name}/{rank}"]):
                missing.discard(rank)
        if missing and time.monotonic() > deadline:
            raise TimeoutError(
                f"rank 0 waited {timeout.total_seconds():g} s for ranks {sorted(missing)}, which "
                "did not come: look in their logs for why they ended or never began"
            )
        time.sleep(_POLL if missing else 0)
