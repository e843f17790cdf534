"""The ranks agree before they exchange data, and find out which rank is missing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import tqdm
from torch import Tensor

from batteries.distributed._groups import (
    ANY_LEFT,
    MissingRankError,
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

_PLACES = 3  # callers in a place, the innermost first
_SHOWN = 60  # characters of each caller
_FEW = 8  # ranks
_ROOM = 2**13  # bytes of a message, if there are few ranks
_MOMENTS = 3  # checks after a rank has left, in which its last data may still arrive
_OTHERS = 2.0  # seconds in which the other ranks can say that they wait too
_GRACE = 5.0  # seconds after the timeout, in which gloo can raise its own error
# Callers in these files are left out. For example, the visible progress bar of rank 0 and the
# hidden ones of other ranks call from different lines of tqdm.
_BETWEEN = (str(Path(__file__).parent.parent), str(Path(tqdm.__file__).parent), contextlib.__file__)
_ANOTHER = "another collective, of PyTorch itself (DDP, FSDP)"
_FAILED = "failed"  # the last word of a rank whose call has failed


class Call(NamedTuple):
    """The collective that a rank is about to do."""

    number: int  # of this rank's collectives in the group, counted from 1
    operation: str
    place: str  # "": not compared


class Told(NamedTuple):
    """What a rank sends before its data."""

    header: Header
    payload: Tensor | None  # small data, sent with the header


def agree(
    operation: str,
    header: Header,
    check: bool = True,
    ranks: Ranks | None = None,
    src: int | None = None,
    payload: Tensor | None = None,
) -> list[Told]:
    """Exchange headers, if all ranks are about to do the same. All ranks call it.

    Up to 8 ranks send each other everything at once, with small payloads. If there are more, each
    sends four numbers to rank 0 and receives three. Texts are sent only if something differs, or
    if `src` is given.

    Args:
        check: Whether all ranks must call from the same place in the program.
        ranks: Default: the world.
        src: Only the header of this rank is needed and returned. Default: those of all ranks.
        payload: This rank's data, if it may be sent with the header.

    Raises:
        RuntimeError: The ranks are not doing the same, or some ranks are missing. The message
            names the ranks and what each was about to do.
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
        try:
            call, fields = json.loads(text)
        except (ValueError, TypeError):  # such as gradients
            call, fields = transfer.call._replace(operation=_ANOTHER, place=""), header
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
    """Whether all do the same, whether all headers are equal, and the longest text in bytes."""
    call, ranks, device = transfer.call, transfer.ranks, transport_device(transfer.ranks.group)
    own = [_digest(call[:2]), _digest(call.place) if call.place else 0, _digest(header), length]
    mine = torch.tensor(own, device=device)
    result = torch.empty(3, dtype=torch.int64, device=device)
    rows = [torch.empty_like(mine) for _ in range(ranks.size)] if ranks.rank == 0 else None
    # Faster than a reduction, for which gloo passes through all ranks twice.
    work = dist.gather(mine, rows, group=ranks.group, group_dst=0, async_op=True)
    transfer.wait(work, device, mine, *(rows or ()), here=True)
    if rows:
        calls, places, headers, lengths = (set(each) for each in torch.stack(rows).T.tolist())
        same = len(calls) == 1 and len(places - {0}) <= 1
        result.copy_(torch.tensor([same, len(headers) == 1, max(lengths)], device="cpu"))
    work = dist.broadcast(result, group_src=0, group=ranks.group, async_op=True)
    transfer.wait(work, device, result, here=True)
    return list(map(int, result.tolist()))


def _told_by(transfer: Transfer, words: bytes, src: int | None) -> Iterator[bytes]:
    """The words of rank `src`, or of all ranks. All have the same length."""
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
    """63 bits, never 0."""
    data = hashlib.blake2b(json.dumps(value).encode(), digest_size=8).digest()
    return int.from_bytes(data, "big") >> 1 | 1


class _Left(NamedTuple):
    why: str
    done: bool


def check_same(what: str, value: str, remedy: str, key: str | None = None) -> None:
    """Raise if another rank has another value under the key.

    No rank waits: the first rank writes its value to the store, the others compare theirs.

    Args:
        key: Default: `what`, with the number of collectives so far. Then only checks between the
            same two collectives are compared.
    """
    if not in_group():
        return
    own = f"{value} on rank {rank()} on {platform.node()}"
    with suppress(StoreGoneError):
        key = f"{counts.get(dist.group.WORLD, 0)}/{what}" if key is None else key
        first = notes().first(f"same/{key}", own)
        if not first.startswith(f"{value} on rank "):
            raise RuntimeError(f"{what} is not the same on all ranks: {first}, {own}; {remedy}")


class Transfer:
    """One exchange of data between ranks, in which every wait ends.

    Every rank makes one, even if it neither sends nor receives. A wait ends when the data arrives,
    the connection fails, a rank is known to have left or failed, or the group's timeout is over. A
    rank whose wait fails closes its connections, so the waits of the other ranks end too.
    """

    def __init__(self, operation: str, check: bool = True, ranks: Ranks | None = None) -> None:
        self.ranks = ranks_of() if ranks is None else ranks
        group = self.ranks.group or dist.group.WORLD
        number = 0
        if group is not None:  # one process may have no group
            number = counts[group] = counts.get(group, 0) + 1
        self.call = Call(number, operation, place() if check else "")
        self._words = 0

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Add the missing ranks to errors of the connection that are raised in the block."""
        try:
            yield
        except RuntimeError as error:
            why = self._who_is_missing() or f"no rank is missing, but {error}"
            raise MissingRankError(f"{_told(self.call)} failed: {why}") from error

    def wait(self, work: Any, device: torch.device, *tensors: Tensor, here: bool = False) -> None:
        """Wait, inside `sending`, for work that sends or receives `tensors`.

        With `here=False`, tensors on a GPU make its next kernels wait, not the program.
        """
        lend(*tensors)
        moments, now_and_then, pause = 0, rarely(), seconds_between(self.ranks.size)

        def over() -> bool:
            nonlocal moments
            if _done_within(pause, work, device):
                return True
            with suppress(StoreGoneError):  # the connection then raises the error
                if notes().check([ANY_LEFT]):  # usually the only question to the store
                    self._say()
                    moments = moments + 1 if self._gone() else 0  # since a rank has left
            if moments == _MOMENTS:
                raise RuntimeError("a rank has left")
            if next(now_and_then):
                self._check_connections()
            return False

        if (device.type == "cpu" or here) and not wait_until(over, timeout() + _GRACE, pause=0):
            raise RuntimeError(f"the call was not over in {timeout():g} s")
        work.wait()  # raises the error of the work, if it has one

    def send(self, data: Tensor, src: int, dst: int | None = None) -> Callable[[], None]:
        """Begin to send a tensor from rank `src` to rank `dst`, or to all; these ranks call it.

        Args:
            data: The tensor of rank `src`. On the other ranks, the memory for it.

        Returns:
            A function that waits until the data has arrived, or raises and names the missing rank.
        """
        group, sends = self.ranks.group, self.ranks.rank == src
        if not data.numel():
            return lambda: None
        # A copy only if the data is on the CPU and nccl is the group's only backend.
        carrier = data if data.is_cuda else data.to(transport_device(group))
        with self.sending():
            if dst is None:
                work = dist.broadcast(carrier, group_src=src, group=group, async_op=True)
            elif sends:
                work = dist.isend(carrier, group_dst=dst, group=group)
            else:
                work = dist.irecv(carrier, group_src=src, group=group)

        def arrive() -> None:
            with self.sending():
                posted = dst is not None and carrier.device.type == "cpu"
                self.wait(_Posted(work) if posted else work, carrier.device, carrier)
            if carrier is not data and not sends:
                data.copy_(carrier)

        return arrive

    def _check_connections(self) -> None:
        for other in closed(self.ranks):
            left = self._left(other)
            if not (left and left.done):
                raise RuntimeError(f"the connection to rank {other} is closed")

    # ---------------------------------------------------------------- missing ranks

    def _say(self, word: str = "") -> None:
        """Write that this rank waits. The word is new each time, which proves that it is alive."""
        self._words += 1
        store, me = notes(), self.ranks.members[self.ranks.rank]
        if word:
            store.set(ANY_LEFT, "")
        store.set(f"waits/{self.ranks.name}/{me}", f"{self.call.number} {word or self._words}")

    def _said(self, other: int) -> tuple[int, str]:
        """The number of the call at which a rank last wrote that it waits, and its word."""
        number, _, word = (notes().get(f"waits/{self.ranks.name}/{other}") or "0 ").partition(" ")
        return int(number), word

    def _gone(self) -> dict[int, str]:
        """The ranks that left before they had done their part in this call or failed, and why."""
        gone = {}
        for other in self.ranks.members:
            left = self._left(other)
            if (left and not left.done) or self._said(other)[1] == _FAILED:
                gone[other] = left.why if left else _FAILED
        return gone

    def _left(self, other: int) -> _Left | None:
        """Why a rank has left, and whether it had done its part in this call; None: it is here."""
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
            absent, gone = self._absent(), self._gone()
            absent = absent or {other for other, why in gone.items() if why != _FAILED}
            gone = {other: why for other, why in gone.items() if other in absent}
        except StoreGoneError as error:
            return str(error)
        # A rank that failed here because another had left is no cause.
        causes = {other: why for other, why in gone.items() if why != _FAILED} or gone
        told = [f"rank {other} has left: {why}" for other, why in causes.items()]
        told += [
            f"rank {other} did not come (dead, suspended, or at another place of the program)"
            for other in sorted(absent - set(gone))
        ]
        return "; ".join(told)

    def _absent(self) -> set[int]:
        """The ranks that write no new word to say that they wait at this call or a later one.

        Older words do not count, because their ranks may be dead. A rank that writes that it failed
        is present: it misses another rank too.
        """
        first = {other: self._said(other) for other in self.ranks.members}
        absent = set(first)

        def over() -> bool:
            gone = set(self._gone())  # before the words: a rank that fails meanwhile is present
            for other in list(absent):
                number, word = said = self._said(other)
                fresh = said != first[other] and number >= self.call.number
                left = self._left(other)
                if word == _FAILED or fresh or (left and left.done):
                    absent.discard(other)
            return absent <= gone

        wait_until(over, _OTHERS + 2 * seconds_between(self.ranks.size), pause=0.05)
        return absent


def place() -> str:
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
        f"the ranks are not doing the same: {'; '.join(parts)}. Let all ranks make the same calls "
        "in the same order, or pass check=False if they call from different places on purpose"
    )


def _done_within(seconds: float, work: Any, device: torch.device) -> bool:
    if device.type == "cpu":
        with suppress(RuntimeError):  # the wait timed out, or the work has failed
            work.wait(timedelta(seconds=seconds))
        return bool(work.is_completed())
    # With nccl, a wait that times out would end the whole group.
    return wait_until(work.is_completed, seconds, pause=0.001)


class _Posted:
    """A message that can tell whether it is complete.

    A message of gloo cannot, and a wait for it that times out closes all connections of the group.
    """

    def __init__(self, work: Any) -> None:
        self._work = work
        self._errors: list[RuntimeError] = []
        self._thread = threading.Thread(target=self._run, name="message", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work.wait()
        except RuntimeError as error:
            self._errors.append(error)

    def is_completed(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, limit: timedelta | None = None) -> None:
        self._thread.join(None if limit is None else limit.total_seconds())
        if self._errors:
            raise self._errors[0]
