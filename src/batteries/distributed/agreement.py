"""What the ranks tell each other before they do something together, and who does not come."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from batteries.distributed.launch import notes, rank, world_size
from batteries.distributed.messages import Header, transport_device

_BYTES = 2048  # of what a rank tells
_PLACES = 3  # callers, from the inside
_SHOWN = 60  # characters of each
_SOON = timedelta(seconds=0.5)
_MOMENTS = 3  # in which what a rank sent before it left may still arrive
_OTHERS = 3.0  # seconds for the others to say that they wait too
_OWN = str(Path(__file__).parent.parent)
_numbers = itertools.count(1)


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
    try:
        _wait(dist.all_gather(theirs, mine, async_op=True), own)
        read = [json.loads(_bytes(tensor)) for tensor in theirs]
    except RuntimeError as error:
        raise RuntimeError(f"{_told(own)} failed: {_who_is_missing(own)}") from error
    calls = [Call(*call) for call, _ in read]
    for call in calls:
        same_place = call.place == own.place or not (call.place and own.place)
        if call[:2] != own[:2] or not same_place:
            raise RuntimeError(_difference(calls))
    return [Header(*header) for _, header in read]


def _place() -> str:
    """The innermost callers outside of this package: "train.py:31, from main.py:12"."""
    places: list[str] = []
    frame: Any = sys._getframe(1)
    while frame is not None and len(places) < _PLACES:
        name = frame.f_code.co_filename
        if not name.startswith(_OWN) and name != contextlib.__file__:
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


def _wait(work: Any, call: Call) -> None:
    """Wait for the others; say so after a moment, and give up soon when one has left."""
    moments = 0
    while not _done_soon(work):
        notes().set(f"waits/{rank()}", str(call.number))
        moments = moments + 1 if _left() else 0
        if moments == _MOMENTS:
            raise RuntimeError("a rank has left")
    work.wait()  # raises what went wrong, if anything did


def _done_soon(work: Any) -> bool:
    if transport_device().type == "cpu":
        with suppress(RuntimeError):  # of the time, or of the work: `is_completed` knows
            work.wait(_SOON)
        return bool(work.is_completed())
    deadline = time.monotonic() + _SOON.total_seconds()
    while not work.is_completed() and time.monotonic() < deadline:
        time.sleep(0.001)  # a wait that ends early would end the whole group of nccl
    return bool(work.is_completed())


def _left() -> dict[int, str]:
    """Why ranks have left."""
    store, keys = notes(), {other: f"left/{other}" for other in range(world_size())}
    return {other: store.get(key).decode() for other, key in keys.items() if store.check([key])}


def _who_is_missing(call: Call) -> str:
    """The ranks that do not wait for the others at this call, or an earlier one."""
    try:
        store = notes()
        store.set(f"waits/{rank()}", str(call.number))
        deadline = time.monotonic() + _OTHERS
        while True:
            waiting = {other for other in range(world_size()) if _waits(other, call)}
            left = {other: why for other, why in _left().items() if other not in waiting}
            absent = set(range(world_size())) - waiting - set(left)
            if not absent or time.monotonic() > deadline:
                break
            time.sleep(0.05)
    except RuntimeError:
        return "the ranks' store is gone, and with it perhaps rank 0"
    told = [f"rank {other} has left: {why}" for other, why in left.items()]
    told += [f"rank {other} did not come (dead, stopped, or elsewhere)" for other in sorted(absent)]
    return "; ".join(told) or "the connection to another rank broke"


def _waits(other: int, call: Call) -> bool:
    store, key = notes(), f"waits/{other}"
    return store.check([key]) and int(store.get(key)) >= call.number
