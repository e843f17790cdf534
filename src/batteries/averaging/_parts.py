"""The average of tensors of many files, piece by piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from batteries.averaging._sources import WINDOW, Part, Source, lies_alike, place_of
from batteries.checkpoint._read_file import SPARE
from batteries.checkpoint._read_outline import CheckpointError
from batteries.checkpoint._write import Form, formed
from batteries.progress import tqdm


@dataclass
class Averaging:
    sources: list[Source]  # files of the same model
    weights: list[float]  # of the files
    dtype: torch.dtype  # the least precise dtype to compute in
    bar: tqdm  # counts bytes

    def of(self, parts: Sequence[Part]) -> dict[str, Tensor]:
        """The averages of some parts of the first source, by the names of their tensors."""
        averaged: dict[str, Tensor] = {}
        room = torch.empty(WINDOW + SPARE, dtype=torch.uint8, device="cpu")
        for part in parts:
            storage = _memory_for(part)
            tensors = {key: formed(storage, form) for key, form in part.forms.items()}
            averaged |= tensors
            places = {(f.offset, f.size, f.stride): key for key, f in reversed(part.forms.items())}
            for key in reversed(places.values()):  # the first of tied tensors
                form, tensor = part.forms[key], tensors[key].detach()
                if lies_alike(key, form, self.sources):
                    self._in_pieces(key, form, tensor, room)
                else:
                    self._whole(key, form, tensor)
        return averaged

    def _whole(self, key: str, form: Form, tensor: Tensor) -> None:
        """Average a tensor whose strides differ: read it as a whole from each source."""
        # One room for all sources: allocating one for each would fragment the memory.
        size = max(source.size(key) for source in self.sources)
        room = torch.empty(size + SPARE, dtype=torch.uint8, device="cpu")
        self._mean(_Piece(key, form, tensor), lambda source: source.tensor(key, room))

    def _in_pieces(self, key: str, form: Form, tensor: Tensor, room: Tensor) -> None:
        """Average a tensor whose bytes are contiguous in each source."""
        flat, width = tensor.as_strided((tensor.numel(),), (1,)), form.dtype.itemsize
        for at in range(0, tensor.nbytes, WINDOW):
            part = flat[at // width : (at + WINDOW) // width]

            def read(source: Source, at: int = at, size: int = part.nbytes) -> Tensor:
                begin = source.places[key].begin + at
                return source.stream.take(begin, size, room).view(form.dtype)

            self._mean(_Piece(key, form, part), read)

    def _mean(self, piece: _Piece, read: Callable[[Source], Tensor]) -> None:
        """Go through the files once, and again if the running average is not enough."""
        mean: _Mean | None = _mean_of(piece, self.dtype)
        while mean is not None:
            for source, weight in zip(self.sources, self.weights, strict=True):
                mean.add(read(source), weight, source)
            mean = mean.ended()
        self.bar.update(piece.room.nbytes)


class _Piece(NamedTuple):
    """A tensor, or a part of it."""

    key: str
    form: Form  # of the whole tensor
    room: Tensor  # where the average goes


def _memory_for(part: Part) -> torch.UntypedStorage:
    """New memory. Bytes that no tensor uses are zero, so that no old data of the process leaks."""
    filled = any(f.size.numel() * f.dtype.itemsize == part.size for f in part.forms.values())
    make = torch.empty if filled else torch.zeros
    return make(part.size, dtype=torch.uint8, device="cpu").untyped_storage()


# ---------------------------------------------------------------- one file after the other


class _Mean:
    """The first file's values. For integer tensors."""

    def __init__(self, piece: _Piece) -> None:
        self.piece, self.room = piece, piece.room
        self.first: Source | None = None

    def add(self, value: Tensor, weight: float, source: Source) -> None:  # noqa: ARG002
        if self.first is None:
            self.room.copy_(value)
            self.first = source
        else:
            self.more(value, source)

    def more(self, value: Tensor, source: Source) -> None:
        pass

    def ended(self) -> _Mean | None:
        """What to do in another pass through the files, if one is needed."""
        return None


class _Largest(_Mean):
    """The largest value. For counters: integers of one element."""

    def more(self, value: Tensor, source: Source) -> None:  # noqa: ARG002
        if int(value) > int(self.room):
            self.room.copy_(value)


class _Same(_Mean):
    """The value that all files have. For bool tensors."""

    def more(self, value: Tensor, source: Source) -> None:
        if not torch.equal(self.room, value):
            assert self.first is not None
            raise CheckpointError(
                f"{place_of(self.piece.key)} is bool and not the same in {self.first.path} and "
                f"{source.path}: bool tensors have no average; average checkpoints in which they "
                "are equal"
            )


class _Running(_Mean):
    """The running average. For floating-point and complex tensors."""

    def __init__(self, piece: _Piece, exact: torch.dtype) -> None:
        super().__init__(piece)
        if piece.form.dtype.is_complex:
            self.room = torch.view_as_real(piece.room)
        alike = self.room.dtype == exact
        self.average = self.room if alike else torch.empty_like(self.room, dtype=exact)
        self.total, self.signed = 0.0, False

    def add(self, value: Tensor, weight: float, source: Source) -> None:  # noqa: ARG002
        if not weight:
            return
        value = torch.view_as_real(value) if value.is_complex() else value
        self.total += weight
        if self.total == weight:
            self.signed = _has_minus_zero(self.average.copy_(value))
        else:
            self.average.lerp_(value.to(self.average.dtype), weight / self.total)

    def ended(self) -> _Mean | None:
        least, most = map(float, self.average.aminmax())
        if self.signed or not -math.inf < least <= most < math.inf:
            return _Mended(self)
        self._put()
        return None

    def _put(self) -> None:
        if self.average is not self.room:
            self.room.copy_(self.average)


class _Mended(_Running):
    """A second pass for values that a running average loses: infinities, and signs of zeros."""

    def __init__(self, running: _Running) -> None:
        self.room, self.average, self.total = running.room, running.average, running.total
        self.wrong = ~self.average.isfinite() | (self.average == 0)
        self.firsts: Tensor | None = None
        self.same = torch.tensor(True, device="cpu")
        self.mean = torch.tensor(0.0, device="cpu")

    def add(self, value: Tensor, weight: float, source: Source) -> None:  # noqa: ARG002
        if not weight:
            return
        value = torch.view_as_real(value) if value.is_complex() else value
        part = value.to(self.average.dtype)[self.wrong].double()
        self.firsts = part if self.firsts is None else self.firsts
        self.same = self.same & (part == self.firsts)
        self.mean = self.mean + part * (weight / self.total)

    def ended(self) -> None:
        assert self.firsts is not None
        mended = torch.where(self.same, self.firsts, self.mean)
        self.average[self.wrong] = mended.to(self.average.dtype)
        self._put()


def _mean_of(piece: _Piece, at_least: torch.dtype) -> _Mean:
    dtype = piece.form.dtype
    if dtype.is_floating_point or dtype.is_complex:
        real = dtype.to_real()
        known = torch.float32 if real.itemsize == 1 else real  # torch cannot promote float8
        return _Running(piece, torch.promote_types(known, at_least))
    if dtype == torch.bool:
        return _Same(piece)
    return _Largest(piece) if piece.form.size.numel() == 1 else _Mean(piece)


def _has_minus_zero(tensor: Tensor) -> bool:
    """Whether it has a -0.0, whose bits are the smallest integer."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize]
    return int(tensor.view(integer).amin()) == torch.iinfo(integer).min
