"""The average of tensors of many files, piece by piece."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from batteries.averaging._sources import Part, Source, place_of
from batteries.checkpoint._archive import Form, formed
from batteries.checkpoint._storage import CheckpointError
from batteries.progress import tqdm


def average_parts(
    sources: list[Source],
    weights: list[float],
    dtype: torch.dtype,
    bar: tqdm,
    parts: list[Part],
) -> dict[str, Tensor]:
    """The averages of some parts, by the names of their tensors.

    >>> from batteries.checkpoint._stream import Stream
    >>> save_checkpoint({"model_state_dict": {"weight": torch.ones(2)}}, "a.pth")
    >>> with Stream.opened("a.pth") as stream:
    ...     source = Source(stream)
    ...     average_parts([source], [1.0], torch.float32, tqdm(disable=True), source.parts())
    {'weight': tensor([1., 1.])}

    Args:
        sources: That are alike.
        weights: How much each of them counts for.
        dtype: What is computed in, at least.
        bar: Of bytes that are done.
        parts: Of the first source.

    Raises:
        CheckpointError: A file ends too early; bool tensors that are not the same.
    """
    own = [source.again() for source in sources] if parts else []
    averaged = {}
    for part in parts:
        storage = _memory_for(part)
        tensors = {key: formed(storage, form) for key, form in part.forms.items()}
        done = set()
        for key, form in part.forms.items():
            place = form.offset, form.size, form.stride
            if place not in done:  # of tied ones the first
                done.add(place)
                _average(key, form, tensors[key].detach(), own, weights, dtype)
        averaged.update(tensors)
        bar.update(part.size)
    return averaged


def _memory_for(part: Part) -> torch.UntypedStorage:
    """New memory; what no tensor lies in is zero, and not what the process had there."""
    filled = any(f.size.numel() * f.dtype.itemsize == part.size for f in part.forms.values())
    make = torch.empty if filled else torch.zeros
    return make(part.size, dtype=torch.uint8).untyped_storage()


def _average(
    key: str,
    form: Form,
    room: Tensor,
    sources: list[Source],
    weights: list[float],
    dtype: torch.dtype,
) -> None:
    """One tensor of all sources, piece by piece while the processor has the pieces.

    If it does not lie alike in all of them: as a whole, of one source after the other.
    """
    if not all(source.lies_as(key, form) for source in sources):
        # one for all: memory that comes and goes leaves holes between what stays
        memory = torch.empty(max(source.size(key) for source in sources), dtype=torch.uint8)
        values = _Values(sources, lambda source: source.tensor(key, memory))
        _combine(room, values, key, form, weights, dtype)
        return
    at, end = 0, form.size.numel() * form.dtype.itemsize
    flat = room.as_strided((form.size.numel(),), (1,))
    while at < end:
        size = min(end - at, *(source.room(key, at) for source in sources))
        read = functools.partial(_piece, key=key, at=at, size=size, dtype=form.dtype)
        start, stop = at // form.dtype.itemsize, (at + size) // form.dtype.itemsize
        _combine(flat[start:stop], _Values(sources, read), key, form, weights, dtype)
        at += size


def _piece(source: Source, key: str, at: int, size: int, dtype: torch.dtype) -> Tensor:
    return source.read(key, at, size).view(dtype)


@dataclass
class _Values:
    """The same tensor, or piece of it, of each source; it can be gone through again."""

    sources: list[Source]
    read: Callable[[Source], Tensor]

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.read, self.sources)


def _combine(
    room: Tensor, values: _Values, key: str, form: Form, weights: list[float], dtype: torch.dtype
) -> None:
    if form.dtype.is_complex:
        reals = _Values(values.sources, lambda source: torch.view_as_real(values.read(source)))
        exact = _precise(form.dtype.to_real(), dtype)
        _average_numbers(torch.view_as_real(room), reals, weights, exact)
    elif form.dtype.is_floating_point:
        _average_numbers(room, values, weights, _precise(form.dtype, dtype))
    elif form.dtype == torch.bool:
        _agree(room, values, key)
    elif form.size.numel() == 1:  # a counter
        room.copy_(max((value.clone() for value in values), key=int))
    else:
        room.copy_(next(iter(values)))


def _precise(dtype: torch.dtype, at_least: torch.dtype) -> torch.dtype:
    known = torch.float32 if dtype.itemsize == 1 else dtype  # torch promotes no float8
    return torch.promote_types(known, at_least)


def _average_numbers(
    room: Tensor, values: Iterable[Tensor], weights: list[float], exact: torch.dtype
) -> None:
    average = room if room.dtype == exact else torch.empty_like(room, dtype=exact)
    total, signed = 0.0, False
    for value, weight in zip(values, weights, strict=True):
        total += weight
        if weight and total == weight:
            signed = _has_minus_zero(average.copy_(value))
        elif weight:
            average.lerp_(value.to(exact), weight / total)
    least, most = map(float, average.aminmax())
    if signed or not -math.inf < least <= most < math.inf:
        _mend(average, values, weights)
    if average is not room:
        room.copy_(average)


def _has_minus_zero(tensor: Tensor) -> bool:
    """Whether -0.0 is in it: as an integer, its bits are the least of all."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize]
    return int(tensor.view(integer).amin()) == torch.iinfo(integer).min


def _mend(average: Tensor, values: Iterable[Tensor], weights: list[float]) -> None:
    """Put in what the running average has not: infinities, of masks, and the signs of zeros."""
    wrong = ~average.isfinite() | (average == 0)
    first, same, mean = None, torch.tensor(True), torch.tensor(0.0)
    for value, weight in zip(values, weights, strict=True):
        if weight:
            part = value.to(average.dtype)[wrong].double()
            first = part if first is None else first
            same, mean = same & (part == first), mean + part * (weight / sum(weights))
    assert first is not None
    average[wrong] = torch.where(same, first, mean).to(average.dtype)


def _agree(room: Tensor, values: _Values, key: str) -> None:
    first = values.sources[0]
    for source, value in zip(values.sources, values, strict=True):
        if source is first:
            room.copy_(value)
        elif not torch.equal(room, value):
            raise CheckpointError(
                f"{place_of(key)} is bool and not the same in {first.path} and {source.path}: "
                "there is no average of them"
            )
