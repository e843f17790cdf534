"""What the ranks tell each other before they do something together, and who does not come."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import tqdm
from torch import Tensor

from batteries.distributed._causes import MissingRankError
from batteries.distributed._groups import (
    ANY_LEFT,
    Ranks,
    break_off,
    closed,
    counts,
    lend,
    notes,
    ranks_of,
    timeout,
)
from batteries.distributed._launch import in_group, rank
from batteries.distributed._messages import Header, as_tensor, transport_device
from batteries.distributed._waiting import StoreGoneError, rarely, seconds_between, wait_until

_PLACES = 3  # callers, from the inside
_SHOWN = 60  # characters of each
_FEW = 8  # ranks
_ROOM = 2**13  # bytes in which each of few ranks tells what it is about to do
_MOMENTS = 3  # in which what a rank sent before it left may still arrive
_OTHERS = 2.0  # seconds for the others to say that they wait too, when they have looked
_GRACE = 5.0  # seconds for gloo to say itself that the time is over
# Not the caller's own: a bar of rank 0 alone is at another line of tqdm's than one that is hidden.
_BETWEEN = (str(Path(__file__).parent.parent), str(Path(tqdm.__file__).parent), contextlib.__file__)
_FAILED = "failed"  # the last word of a rank at a call


class Call(NamedTuple):
    """What a rank is about to do."""

    number: int  # how many it has done, with this one
    operation: str
    place: str  # "": not to be compared


class Told(NamedTuple):
    """What a rank told of its data before this travels."""

    header: Header
    payload: Tensor | None  # has come with the header


def agree(
    operation: str,
    header: Header,
    check: bool = True,
    ranks: Ranks | None = None,
    src: int | None = None,
    payload: Tensor | None = None,
) -> list[Told]:
    """The headers of all ranks, which are about to do the same thing; a collective.

    Few ranks tell each other all of it at once, and payloads that are small. Each of many ranks
    tells rank 0 four numbers and hears three; only what differs is then told in words.

    Args:
        check: Whether all must have come from the same place in the program.
        ranks: Default: the world.
        src: The rank whose header alone counts, and comes.

    Raises:
        RuntimeError: They are not, on every rank, with what each was about to do. Or some did not
            come: with who they are.
    """
    transfer = Transfer(operation, check, ranks)
    with transfer.sending():
        if transfer.ranks.size <= _FEW:
            told = _told_at_once(transfer, header, payload)
        else:
            told = _told_by_way_of_zero(transfer, header, src)
    calls = [call for call, _ in told]
    if len({call[:2] for call in calls}) > 1 or len({call.place for call in calls} - {""}) > 1:
        raise RuntimeError(_difference(calls))
    return [each for _, each in (told if src is None else told[src : src + 1])]


def _told_at_once(
    transfer: Transfer, header: Header, payload: Tensor | None
) -> list[tuple[Call, Told]]:
    words = json.dumps([transfer.call, header]).encode() + b"\n"
    if payload is not None and len(words) + header.size <= _ROOM:
        words += payload.cpu().numpy().tobytes()
    told = []
    for row in _told_by(transfer, words.ljust(_ROOM), None):
        text, _, rest = row.partition(b"\n")
        call, fields = json.loads(text)
        size = Header(*fields).size
        data = as_tensor(rest[:size]) if size <= len(rest) else None
        told.append((Call(*call), Told(Header(*fields), data)))
    return told


def _told_by_way_of_zero(
    transfer: Transfer, header: Header, src: int | None
) -> list[tuple[Call, Told]]:
    ranks = transfer.ranks
    words = json.dumps([transfer.call, header]).encode()
    together, alike, longest = _compared(transfer, header, len(words))
    if together and alike and src is None:
        return [(transfer.call, Told(header, None))] * ranks.size
    said = map(json.loads, _told_by(transfer, words.ljust(longest), src if together else None))
    told = [(Call(*call), Told(Header(*fields), None)) for call, fields in said]
    return told * (ranks.size if together and src is not None else 1)


def _compared(transfer: Transfer, header: Header, length: int) -> list[int]:
    """Whether all do the same, whether their headers are alike, and the most bytes of words."""
    call, ranks, device = transfer.call, transfer.ranks, transport_device(transfer.ranks.group)
    own = [_digest(call[:2]), _digest(call.place) if call.place else 0, _digest(header), length]
    mine = torch.tensor(own, device=device)
    result = torch.empty(3, dtype=torch.int64, device=device)
    rows = [torch.empty_like(mine) for _ in range(ranks.size)] if ranks.rank == 0 else None
    # Faster than a reduction, for which gloo goes around all ranks twice.
    work = dist.gather(mine, rows, group=ranks.group, group_dst=0, async_op=True)
    transfer.wait(work, device, mine, *(rows or ()), here=True)
    if rows:
        calls, places, headers, lengths = (set(each) for each in torch.stack(rows).T.tolist())
        same = len(calls) == 1 and len(places - {0}) <= 1
        result.copy_(torch.tensor([same, len(headers) == 1, max(lengths)]))
    work = dist.broadcast(result, group_src=0, group=ranks.group, async_op=True)
    transfer.wait(work, device, result, here=True)
    return list(map(int, result.tolist()))


def _told_by(transfer: Transfer, words: bytes, src: int | None) -> Iterator[bytes]:
    """The words of one rank, or of all; they are of one length."""
    ranks, device = transfer.ranks, transport_device(transfer.ranks.group)
    mine = as_tensor(words).to(device)
    parts = [mine] if src is not None else [torch.empty_like(mine) for _ in range(ranks.size)]
    if src is not None:
        work = dist.broadcast(mine, group_src=src, group=ranks.group, async_op=True)
    else:
        work = dist.all_gather(parts, mine, group=ranks.group, async_op=True)
    transfer.wait(work, device, mine, *parts, here=True)
    return (part.cpu().numpy().tobytes() for part in parts)


def _digest(value: object) -> int:
    """63 bits that are never 0."""
    data = hashlib.blake2b(json.dumps(value).encode(), digest_size=8).digest()
    return int.from_bytes(data, "big") >> 1 | 1


class _Left(NamedTuple):
    why: str
    done: bool


def check_same(what: str, value: str, remedy: str) -> None:
    """Raise if another rank has said something else at the same moment; nobody waits.

    A moment is the time between two collectives. The first rank that comes says it.

    Raises:
        RuntimeError: With both ranks, their hosts, and what they said.
    """
    if not in_group():
        return
    own = f"{value} on rank {rank()} on {platform.node()}"
    with suppress(StoreGoneError):
        first = notes().first(f"same/{counts.get(dist.group.WORLD, 0)}/{what}", own)
        if not first.startswith(f"{value} on rank "):
            raise RuntimeError(f"{what} is not the same on all ranks: {first}, {own}; {remedy}")


class Transfer:
    """What ranks send each other, and how each of them comes to an end.

    Each rank makes one, also one that neither sends nor receives. A wait ends by the data, by an
    error of the connection, by a rank that is known to have left or failed, or by the group's
    timeout. Who ends it by an error closes its connections, which ends it for the others.

    Args:
        check: As `agree` had it.
        ranks: Default: the world.
    """

    def __init__(self, operation: str, check: bool = True, ranks: Ranks | None = None) -> None:
        self.ranks = ranks_of() if ranks is None else ranks
        group = self.ranks.group or dist.group.WORLD
        number = 0
        if group is not None:  # there is none in an example
            number = counts[group] = counts.get(group, 0) + 1
        self.call = Call(number, operation, _place() if check else "")
        self._words = 0

    @contextmanager
    def sending(self) -> Iterator[None]:
        """A block whose errors are of the connection: they say who left in the middle.

        Raises:
            RuntimeError: Of a rank that is missing; it says who.
        """
        try:
            yield
        except RuntimeError as error:
            why = self._who_is_missing() or f"no rank is missing, but {error}"
            raise MissingRankError(f"{_told(self.call)} failed: {why}") from error

    def wait(self, work: Any, device: torch.device, *tensors: Tensor, here: bool = False) -> None:
        """Wait inside the block for what was begun.

        Args:
            tensors: Those that travel.
            here: False lets the next kernels of a GPU wait instead of the program.
        """
        lend(*tensors)
        moments, now_and_then, pause = 0, rarely(), seconds_between(self.ranks.size)

        def over() -> bool:
            nonlocal moments
            if _done_within(pause, work, device):
                return True
            with suppress(StoreGoneError):  # no word of anybody; the connection will tell
                if notes().check([ANY_LEFT]):  # else one question is all that the store is asked
                    self._say()
                    moments = moments + 1 if self._gone() else 0  # since one left
            if moments == _MOMENTS:
                raise RuntimeError("a rank has left")
            if next(now_and_then):
                self._check_connections()
            return False

        if (device.type == "cpu" or here) and not wait_until(over, timeout() + _GRACE, pause=0):
            raise RuntimeError(f"it was not over in {timeout():g} s")
        work.wait()  # raises what went wrong, if anything did

    def _check_connections(self) -> None:
        for other in closed(self.ranks):
            left = self._left(other)
            if not (left and left.done):
                raise RuntimeError(f"the connection to rank {other} is closed")

    # ---------------------------------------------------------------- who does not come

    def _say(self, word: str = "") -> None:
        """That this rank waits, in other words each time, as only a rank can that is there."""
        self._words += 1
        store, me = notes(), self.ranks.members[self.ranks.rank]
        if word:
            store.set(ANY_LEFT, "")
        store.set(f"waits/{self.ranks.name}/{me}", f"{self.call.number} {word or self._words}")

    def _said(self, other: int) -> tuple[int, str]:
        """The call at which a rank last said that it waits, and its word."""
        number, _, word = (notes().get(f"waits/{self.ranks.name}/{other}") or "0 ").partition(" ")
        return int(number), word

    def _gone(self) -> dict[int, str]:
        """Why ranks will not come to this, or will not bring it to its end."""
        gone = {}
        for other in self.ranks.members:
            left = self._left(other)
            if (left and not left.done) or self._said(other)[1] == _FAILED:
                gone[other] = left.why if left else _FAILED
        return gone

    def _left(self, other: int) -> _Left | None:
        """Whether a rank has left, and whether it had done its part in this before."""
        left = notes().get(f"left/{other}")
        if left is None:
            return None
        why, well, done = json.loads(left)
        return _Left(why, well and done.get(self.ranks.name, 0) >= self.call.number)

    def _who_is_missing(self) -> str:
        try:
            with suppress(StoreGoneError):
                self._say(_FAILED)
            break_off(self.ranks)
            absent = self._absent()
            gone = {other: why for other, why in self._gone().items() if other in absent}
        except StoreGoneError as error:
            return str(error)
        # Who failed here for want of a rank that has left is no cause beside it.
        causes = {other: why for other, why in gone.items() if why != _FAILED} or gone
        told = [f"rank {other} has left: {why}" for other, why in causes.items()]
        told += [
            f"rank {other} did not come (dead, stopped, or elsewhere)"
            for other in sorted(absent - set(gone))
        ]
        return "; ".join(told)

    def _absent(self) -> set[int]:
        """The ranks that do not say now that they wait for the others at this call, or a later one.

        What a rank said before does not count: it may be dead by now. One that says that it failed
        is there: it was left alone too.
        """
        first = {other: self._said(other) for other in self.ranks.members}
        absent = set(first)

        def over() -> bool:
            for other in list(absent):
                number, word = said = self._said(other)
                fresh = said != first[other] and number >= self.call.number
                left = self._left(other)
                if word == _FAILED or fresh or (left and left.done):
                    absent.discard(other)
            return absent <= set(self._gone())

        wait_until(over, _OTHERS + 2 * seconds_between(self.ranks.size), pause=0.05)
        return absent


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


def _done_within(seconds: float, work: Any, device: torch.device) -> bool:
    if device.type == "cpu":
        with suppress(RuntimeError):  # of the time, or of the work: `is_completed` knows
            work.wait(timedelta(seconds=seconds))
        return bool(work.is_completed())
    # A wait that ends early would end the whole group of nccl.
    return wait_until(work.is_completed, seconds, pause=0.001)
