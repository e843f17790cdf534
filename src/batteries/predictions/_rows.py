"""The rows of all ranks on their way into the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice, pairwise, zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batteries.distributed._agreement import Transfer
from batteries.distributed._messages import as_tensor
from batteries.predictions._each_once import Form, Indices, Result

_PIECE = 2**22  # bytes of an array in one piece
_TOGETHER = 2  # pieces that are sent while as many are put into the result
_OBJECTS = 4096  # objects in one piece
_SMALL = 2**16  # rows with fewer bytes are sent in the header


class Part(NamedTuple):
    """The header that a rank sends before its rows."""

    asked: tuple[Any, ...]  # the arguments, which must be the same on all ranks
    forms: list[Form]
    size: int  # rows
    spaced: range | None  # the indices; None: they are sent with the rows
    sizes: list[list[int]]  # for each piece, the bytes of each array of objects
    small: list[bytes] | None  # all tensors of all pieces; None: they are sent in pieces

    @classmethod
    def of(
        cls, asked: tuple[Any, ...], forms: list[Form], indices: Indices, rows: list[Any]
    ) -> Part:
        spaced = indices if isinstance(indices, range) else None
        part = cls(asked, forms, len(indices), spaced, [], None)
        lists = [values for values in rows if isinstance(values, list)]
        for piece in part.pieces():
            part.sizes.append([sum(map(len, values[piece])) for values in lists])
        row = sum(_bytes(form) or 8 for form in forms) + 8
        if row * len(indices) + sum(map(sum, part.sizes)) > _SMALL:
            return part
        return part._replace(
            small=[
                _flat(tensor).numpy().tobytes()
                for piece in part.pieces()
                for tensor in part.packed(piece, indices, rows)
            ]
        )

    def pieces(self) -> Iterator[slice]:
        """The rows of each piece."""
        most = max([1, *(_bytes(f) if f.dtype else _PIECE // _OBJECTS for f in self.forms)])
        rows = max(1, _PIECE // most)
        for start in range(0, self.size, rows):
            yield slice(start, min(start + rows, self.size))

    def packed(self, piece: slice, indices: Indices, rows: list[Any]) -> list[Tensor]:
        """The tensors that are sent for a piece."""
        tensors = [] if isinstance(indices, range) else [torch.from_numpy(indices[piece])]
        for values in (values[piece] for values in rows):
            if isinstance(values, list):
                tensors += [
                    torch.tensor([*map(len, values)], device="cpu"),
                    as_tensor(b"".join(values)),
                ]
            else:
                tensors.append(values.contiguous())
        return tensors

    def rooms(self, number: int, piece: slice, result: Result) -> list[Tensor]:
        """Memory into which the tensors of a piece are received."""
        count, sizes = piece.stop - piece.start, iter(self.sizes[number])
        tensors = (
            []
            if self.spaced is not None
            else [torch.empty(count, dtype=result.places, device="cpu")]
        )
        for form in self.forms:
            if form.dtype:
                tensors.append(result.room(form, count, self.spaced and self.spaced[piece]))
            else:
                tensors += [
                    torch.empty(count, dtype=torch.int64, device="cpu"),
                    torch.empty(next(sizes), dtype=torch.uint8, device="cpu"),
                ]
        return tensors

    def unpacked(self, piece: slice, tensors: list[Tensor]) -> tuple[Indices, list[Any]]:
        left = iter(tensors)
        there = self.spaced[piece] if self.spaced is not None else next(left).numpy()
        return there, [
            next(left) if form.dtype else _objects(next(left), next(left)) for form in self.forms
        ]


def bring(
    parts: list[Part],
    indices: Indices,
    rows: list[Any],
    result: Result | None,
    dst: int | None,
    transfer: Transfer,
) -> None:
    """Put the rows of all ranks into the result (None on a rank that gets nothing).

    All ranks send the pieces in the same order.
    """
    small = [iter(part.small or ()) for part in parts]

    def begin(source: int, number: int, piece: slice) -> Callable[[], tuple[Indices, list[Any]]]:
        part, mine = parts[source], source == transfer.ranks.rank
        travels = part.small is None and source != dst and transfer.ranks.size > 1
        tensors: list[Tensor] = []
        if mine and travels:
            tensors = part.packed(piece, indices, rows)
        elif not mine and result is not None:
            tensors = part.rooms(number, piece, result)
        arrivals = [transfer.send(_flat(each), source, dst) for each in tensors if travels]
        if not travels:
            for tensor, data in zip(tensors, small[source], strict=False):
                _flat(tensor).copy_(as_tensor(data))

        def arrive() -> tuple[Indices, list[Any]]:
            for each in arrivals:
                each()
            if mine or result is None:
                return indices[piece], [values[piece] for values in rows]
            return part.unpacked(piece, tensors)

        return arrive

    def finish(group: list[Callable[[], tuple[Indices, list[Any]]]]) -> None:
        arrived = [arrive() for arrive in group]
        if result is not None:
            result.put(arrived)

    # The ranks take turns. Their pieces are close to each other in the dataset, so this part of the
    # result is still in the cache.
    turns = zip_longest(*(enumerate(part.pieces()) for part in parts))
    found = ((source, *piece) for turn in turns for source, piece in enumerate(turn) if piece)
    before: list[Callable[[], tuple[Indices, list[Any]]]] = []
    while group := [begin(*each) for each in islice(found, _TOGETHER)]:
        finish(before)
        before = group
    finish(before)


def _bytes(form: Form) -> int:
    """Bytes of a row; 0 for objects, whose sizes differ."""
    return math.prod(form.shape) * getattr(torch, form.dtype).itemsize if form.dtype else 0


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _objects(lengths: Tensor, data: Tensor) -> list[bytes]:
    whole, ends = data.numpy().tobytes(), [0, *lengths.cumsum(0).tolist()]
    return [whole[start:end] for start, end in pairwise(ends)]
