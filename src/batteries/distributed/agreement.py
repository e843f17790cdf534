"""What the ranks tell each other before they do something together, and who does not come."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import tqdm
from torch import Tensor

from batteries.distributed.launch import ANY_LEFT, notes, rank, world_size
from batteries.distributed.messages import Header, transport_device

_BYTES = 2048  # of what a rank tells
_PLACES = 3  # callers, from the inside
_SHOWN = 60  # characters of each
_SOON = timedelta(seconds=0.5)
_MOMENTS = 3  # in which what a rank sent before it left may still arrive
_OTHERS = 3.0  # seconds for the others to say that they wait too
# Not the caller's own: a bar of rank 0 alone is at another line of tqdm's than one that is hidden.
_BETWEEN = (str(Path(__file__).parent.parent), str(Path(tqdm.__file__).parent), contextlib.__file__)
_numbers = itertools.count(1)
_words = itertools.count()
_FAILED = "failed"  # the last word of a rank at a call


class Call(NamedTuple):
    """What a rank is about to do.

    >>> Call(1, "barrier", "train.py:31")
    Call(number=1, operation='barrier', place='train.py:31')
    """

    number: int  # how many it has done, with this one
    operation: str
    place: str  # "": not to be compared


def agree(operation: str, header: Header, check: bool = True) -> list[Header]:
    """The headers of all ranks, which are about to do the same thing; a collective.

    >>> headers = agree("barrier", encode(None)[0]) if dist.is_initialized() else []

    Args:
        check: Whether all must have come from the same place in the program.

    Raises:
        RuntimeError: They are not, on every rank, with what each was about to do. Or some did not
            come: with who they are.
    """
    own = Call(next(_numbers), operation, _place() if check else "")
    told = json.dumps([own, header]).encode().ljust(_BYTES)
    assert len(told) == _BYTES, "64 dimensions, the most torch has, fit"
    mine = torch.frombuffer(bytearray(told), dtype=torch.uint8).to(transport_device())
    theirs = [torch.empty_like(mine) for _ in range(world_size())]
    with _naming_the_missing(own):
        _wait(dist.all_gather(theirs, mine, async_op=True), own)
        read = [json.loads(_bytes(tensor)) for tensor in theirs]
    calls = [Call(*call) for call, _ in read]
    for call in calls:
        same_place = call.place == own.place or not (call.place and own.place)
        if call[:2] != own[:2] or not same_place:
            raise RuntimeError(_difference(calls))
    return [Header(*header) for _, header in read]


class Transfer:
    """What the ranks send each other after they have agreed, of any size.

    >>> transfer = Transfer("all_gather")
    >>> with transfer.sending():
    ...     pass

    Each rank makes one, also one that neither sends nor receives.

    Args:
        check: As `agree` had it.
    """

    def __init__(self, operation: str, check: bool = True) -> None:
        self._call = Call(next(_numbers), operation, _place() if check else "")

    @contextmanager
    def sending(self, peer: int | None = None) -> Iterator[None]:
        """A block whose errors are of the connection: they say who left in the middle.

        Args:
            peer: The rank at the other end; default: it may be any.

        Raises:
            RuntimeError: Of a rank that is missing; it says who.
        """
        with _naming_the_missing(self._call, peer):
            yield

    def wait(self, work: Any, device: torch.device) -> None:
        """Wait inside the block for what all do at once, or let the next kernels of a GPU wait."""
        while device.type == "cpu" and not _done_soon(work, device):
            _say_that_it_waits(self._call)
        work.wait()


def _place() -> str:
    """The innermost callers outside of this package: "train.py:31, from main.py:12"."""
    places: list[str] = []
    frame: Any = sys._getframe(1)
    while frame is not None and len(places) < _PLACES:
        name = frame.f_code.co_filename
        if not name.startswith(_BETWEEN):
            places.append(f"{name.rpartition(os.sep)[2]}:{frame.f_lineno}"[-_SHOWN:])
        frame = frame.f_back
    return ", from ".join(places)


def _told(call: Call) -> str:
    return f"{call.operation} at {call.place}" if call.place else call.operation


def _difference(calls: list[Call]) -> str:
    by_call: dict[tuple[str, str], list[int]] = {}
    for number, call in enumerate(calls):
        by_call.setdefault((_told(call), f"its collective {call.number}"), []).append(number)
    numbers = len({call.number for call in calls}) > 1
    parts = [
        f"rank {', '.join(map(str, ranks))}: {told}{f' ({number})' if numbers else ''}"
        for (told, number), ranks in by_call.items()
    ]
    return (
        f"the ranks are not doing the same: {'; '.join(parts)}. Let all come to the same calls in "
        "the same order, or pass check=False where they call from different places on purpose"
    )


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().numpy().tobytes()


# ---------------------------------------------------------------- who does not come


@contextmanager
def _naming_the_missing(call: Call, peer: int | None = None) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        why = _who_is_missing(call, peer) or f"no rank is missing, but {error}"
        raise RuntimeError(f"{_told(call)} failed: {why}") from error


def _wait(work: Any, call: Call) -> None:
    """Wait for the others; say so after a moment, and give up soon when one has left."""
    moments = 0
    while not _done_soon(work, transport_device()):
        _say_that_it_waits(call)
        moments = moments + 1 if _left() else 0
        if moments == _MOMENTS:
            raise RuntimeError("a rank has left")
    work.wait()  # raises what went wrong, if anything did


def _done_soon(work: Any, device: torch.device) -> bool:
    if device.type == "cpu":
        with suppress(RuntimeError):  # of the time, or of the work: `is_completed` knows
            work.wait(_SOON)
        return bool(work.is_completed())
    deadline = time.monotonic() + _SOON.total_seconds()
    while not work.is_completed() and time.monotonic() < deadline:
        time.sleep(0.001)  # a wait that ends early would end the whole group of nccl
    return bool(work.is_completed())


def _say_that_it_waits(call: Call, word: str = "") -> None:
    """In other words each time, as only a rank can that is still there."""
    notes().set(f"waits/{rank()}", f"{call.number} {word or next(_words)}")


def _left() -> dict[int, str]:
    """Why ranks have left."""
    store, keys = notes(), {other: f"left/{other}" for other in range(world_size())}
    if not store.check([ANY_LEFT]):  # as nearly always: one question, not one for each rank
        return {}
    return {other: store.get(key).decode() for other, key in keys.items() if store.check([key])}


def _who_is_missing(call: Call, peer: int | None) -> str:
    try:
        _say_that_it_waits(call, _FAILED)
        absent = _absent(call) if peer is None else {peer}
        left = {other: why for other, why in _left().items() if other in absent}
    except RuntimeError:
        return "the ranks' store is gone, and with it perhaps rank 0"
    told = [f"rank {other} has left: {why}" for other, why in left.items()]
    told += [
        f"rank {other} did not come (dead, stopped, or elsewhere)"
        for other in sorted(absent - set(left))
    ]
    return "; ".join(told)


def _absent(call: Call) -> set[int]:
    """The ranks that do not wait for the others at this call, or a later one."""
    first: dict[int, str] = {}
    absent = set(range(world_size()))
    deadline = time.monotonic() + _OTHERS
    while True:
        absent -= {other for other in absent if _waits(other, call, first)}
        if absent <= set(_left()) or time.monotonic() > deadline:
            return absent
        time.sleep(0.05)


def _waits(other: int, call: Call, first: dict[int, str]) -> bool:
    """Whether a rank says now that it waits, or failed; `first` is what it said when first asked.

    What it said before does not count: it may be dead by now.
    """
    store, key = notes(), f"waits/{other}"
    said = store.get(key).decode() if store.check([key]) else ""
    if not said:
        first[other] = ""
        return False
    number, _, word = said.partition(" ")
    fresh = word == _FAILED or said != first.setdefault(other, said)
    return fresh and int(number) >= call.number
