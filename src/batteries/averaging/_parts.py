"""The average of tensors of many files, window by window."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from batteries.averaging._sources import WINDOW, Part, Source, lies, lies_alike, place_of
from batteries.checkpoint._read_file import SPARE
from batteries.checkpoint._read_outline import CheckpointError
from batteries.checkpoint._write import formed
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
        pieces: list[_Piece] = []
        room = torch.empty(WINDOW + SPARE, dtype=torch.uint8, device="cpu")
        for part in parts:
            storage = _memory_for(part)
            tensors = {key: formed(storage, form) for key, form in part.forms.items()}
            averaged |= tensors
            places = {lies(form): key for key, form in reversed(part.forms.items())}
            for key in reversed(places.values()):  # the first of tied tensors
                form, tensor = part.forms[key], tensors[key].detach()
                if not lies_alike(key, form, self.sources):
                    self._whole(key, form, tensor)
                else:
                    pieces += _cut(key, form, tensor)
        for window in _windows(pieces, self.sources):
            self._run(window, room)
        return averaged

    def _whole(self, key: str, form: Tensor, tensor: Tensor) -> None:
        """Average a tensor whose strides differ: read it as a whole from each source."""
        # One room for all sources: allocating one for each would fragment the memory.
        size = max(source.size(key) for source in self.sources)
        room = torch.empty(size + SPARE, dtype=torch.uint8, device="cpu")
        self._mean([_Piece(key, form, 0, 0, tensor)], lambda s: [s.tensor(key, room)])
        self.bar.update(tensor.nbytes)

    def _run(self, window: list[_Piece], room: Tensor) -> None:
        def values(source: Source) -> Iterator[Tensor]:
            begin, end = window[0].begin(source), window[-1].end(source)
            data = source.stream.take(begin, end - begin, room)
            for piece in window:
                at = piece.begin(source) - begin
                yield data[at : at + piece.size].view(piece.form.dtype)

        self._mean(window, values)
        self.bar.update(sum(piece.size for piece in window))

    def _mean(
        self, window: list[_Piece], values: Callable[[Source], Iterator[Tensor] | list[Tensor]]
    ) -> None:
        """Go through the files once, and again if the running average is not enough."""
        means: list[_Mean | None] = [_mean_of(piece, self.dtype) for piece in window]
        while any(means):
            for source, weight in zip(self.sources, self.weights, strict=True):
                for mean, value in zip(means, values(source), strict=True):
                    if mean is not None:
                        mean.add(value, weight, source)
            means = [mean and mean.ended() for mean in means]


@dataclass
class _Piece:
    """Bytes of a tensor that are contiguous in each file."""

    key: str
    form: Tensor  # the whole tensor, without data
    at: int  # bytes from the tensor's beginning
    size: int
    room: Tensor  # where the average goes

    def begin(self, source: Source) -> int:
        return source.places[self.key].begin + self.at

    def end(self, source: Source) -> int:
        return self.begin(source) + self.size


def _cut(key: str, form: Tensor, tensor: Tensor) -> list[_Piece]:
    flat, width = tensor.as_strided((tensor.numel(),), (1,)), form.dtype.itemsize
    pieces = []
    for at in range(0, tensor.nbytes, WINDOW):
        room = flat[at // width : (at + WINDOW) // width]
        pieces.append(_Piece(key, form, at, room.nbytes, room))
    return pieces


def _windows(pieces: list[_Piece], sources: list[Source]) -> Iterator[list[_Piece]]:
    """Groups of pieces that are in this order in all files, and span at most WINDOW bytes."""
    window: list[_Piece] = []
    for piece in pieces:
        if window and not all(
            window[-1].end(source) <= piece.begin(source)
            and piece.end(source) - window[0].begin(source) <= WINDOW
            for source in sources
        ):
            yield window
            window = []
        window.append(piece)
    if window:
        yield window


def _memory_for(part: Part) -> torch.UntypedStorage:
    """New memory. Bytes that no tensor uses are zero, so that no old data of the process leaks."""
    filled = any(form.nbytes == part.size for form in part.forms.values())
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
    return _Largest(piece) if piece.form.numel() == 1 else _Mean(piece)


def _has_minus_zero(tensor: Tensor) -> bool:
    """Whether it has a -0.0, whose bits are the smallest integer."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize]
    return int(tensor.view(integer).amin()) == torch.iinfo(integer).min
