"""Checkpoint files to average: their contents, and where each tensor's bytes are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from batteries._files import PathLike
from batteries.checkpoint._read import is_sharded, named_weights
from batteries.checkpoint._read_file import SPARE, Stream
from batteries.checkpoint._read_outline import CheckpointError, is_state
from batteries.checkpoint._read_shards import Shards
from batteries.checkpoint._write import is_plain

_KEY = "model_state_dict"
WINDOW = 2**20  # bytes of a file that are read at once: they fit into the processor's cache


@dataclass
class Part:
    """Memory of one or several tensors of a state."""

    size: int  # bytes
    forms: dict[str, Tensor]  # by their names, without data


class _Place(NamedTuple):
    """Where a tensor is in a file, and its strides."""

    memory: int  # where its storage begins
    begin: int  # where its first element is
    form: Tensor
    in_pieces: bool = False  # only torch's engine knows where the pieces are

    def lies_as(self, form: Tensor) -> bool:
        """Whether the bytes in the file are in the order of a form."""
        alike = self.form.stride() == form.stride() or _steps(self.form) == _steps(form)
        return alike and not self.in_pieces and not self.begin % form.dtype.itemsize


class Source:
    """A checkpoint file whose tensors are read by name, in any order."""

    @classmethod
    def opened(cls, path: PathLike, stack: ExitStack) -> Source:
        """Open a file. It is verified and closed when the stack is closed."""
        if is_sharded(path):
            return _ShardedSource(path)
        source = cls(stack.enter_context(Stream.opened(path)))
        stack.push(lambda kind, *_: None if kind else source.stream.verify())
        return source

    def __init__(self, stream: Stream) -> None:
        self.path = stream.path
        if stream.is_foreign():
            raise CheckpointError(
                f"{self.path} was written on a machine with another byte order: load it here, and "
                "save it with save_checkpoint"
            )
        self.state = weights_in(stream.contents, stream.path)
        self.stream = stream
        self.places: dict[str, _Place] = {}  # not of empty tensors
        for key, value in self.state.items():
            if isinstance(value, Tensor) and value.numel():
                memory = stream.offset(value)
                begin = memory + int(value.storage_offset()) * value.itemsize
                self.places[key] = _Place(memory, begin, value)

    def check_alike(self, other: Source) -> None:
        """Raise if the names, shapes or dtypes of two files differ."""
        for here, there in ((self, other), (other, self)):
            for key in here.state:
                if key not in there.state:
                    raise CheckpointError(
                        f"{place_of(key)} is in {here.path} but not in {there.path}: average "
                        "checkpoints of one model"
                    )
        for key, value in self.state.items():
            mine, theirs = _kind(value), _kind(other.state[key])
            if mine != theirs:
                raise CheckpointError(
                    f"{place_of(key)} is {_described(value)} in {self.path} but "
                    f"{_described(other.state[key])} in {other.path}: average checkpoints of one "
                    "model"
                )

    def parts(self, others: Sequence[Source] = ()) -> list[Part]:
        """The memory of all tensors, in the order of the file.

        Tensors are in one part if they share their memory in all files.
        """
        everywhere = [source.places for source in (self, *others)]
        groups: dict[tuple[int, ...], list[str]] = {}
        for key in self.places:
            groups.setdefault(tuple([places[key].memory for places in everywhere]), []).append(key)
        ordered = sorted(groups.items(), key=lambda item: item[0])
        return [part for _, keys in ordered for part in self._parts_of(keys, everywhere)]

    def _parts_of(
        self, keys: list[str], everywhere: Sequence[Mapping[str, _Place]]
    ) -> Iterable[Part]:
        """The parts of tensors that share their memory in all files."""
        parts: dict[object, Part] = {}
        alike = len(keys) == 1 or all(
            lies(places[key].form) == lies(self.places[key].form)
            for key in keys
            for places in everywhere
        )
        for key in keys:
            form, place = self.state[key], None
            if _reach(form) < form.numel():  # an expanded tensor is written in full
                form, place = _alone(form, torch.contiguous_format), key
            elif not alike:  # the files divide the memory in different ways
                form = _alone(form, torch.preserve_format)
                place = str([lies(places[key].form) for places in everywhere])
            part = parts.setdefault(place, Part(form.untyped_storage().nbytes(), {}))
            part.forms[key] = form
            if next(iter(part.forms.values())).dtype != form.dtype:
                raise CheckpointError(
                    f"{place_of(key)} in {self.path} shares its memory with a tensor of another "
                    "dtype and cannot be averaged: save a clone of it"
                )
        return parts.values()

    def tensor(self, key: str, memory: Tensor) -> Tensor:
        """Read a whole tensor into memory, (at least `size` + SPARE,) uint8."""
        form, begin, size = self.places[key].form, self.places[key].begin, self.size(key)
        for at in range(0, size, WINDOW):
            part = memory[at : at + WINDOW + SPARE]
            data = self.stream.take(begin + at, min(WINDOW, size - at), part)
            memory[at : at + len(data)] = data.clone()  # `data` is in the same memory
        return memory[:size].view(form.dtype).as_strided(form.size(), form.stride())

    def size(self, key: str) -> int:
        """The number of bytes from the first element of a tensor to its last."""
        return _reach(self.places[key].form) * self.places[key].form.itemsize


class _ShardedSource(Source):
    """A sharded checkpoint. Its tensors are read whole, one after the other."""

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        self._shards = Shards(path, alone=True)
        self.state = weights_in(self._shards.contents, self.path)
        self.places = {
            key: _Place(id(value), 0, value, in_pieces=True)  # tied tensors are one object
            for key, value in self.state.items()
            if isinstance(value, Tensor) and value.numel()
        }

    def tensor(self, key: str, memory: Tensor) -> Tensor:
        meta = self.state[key]
        room = memory[: meta.nbytes].view(meta.dtype).view(meta.shape)
        self._shards.fill(meta, room)
        return room


def lies_alike(key: str, form: Tensor, sources: Iterable[Source]) -> bool:
    """Whether a tensor's bytes are contiguous and in the order of a form, in all files."""
    whole = _reach(form) == form.numel()
    return whole and all(source.places[key].lies_as(form) for source in sources)


def _reach(form: Tensor) -> int:
    """The number of elements in memory from the first of a tensor to its last."""
    return 1 + sum((size - 1) * step for size, step in zip(form.size(), form.stride(), strict=True))


def _alone(form: Tensor, layout: torch.memory_format) -> Tensor:
    """A form like another one, in memory of its own."""
    own = torch.empty_like(form, memory_format=layout)
    if isinstance(form, nn.Parameter):
        return nn.Parameter(own, form.requires_grad)
    return own.requires_grad_(form.requires_grad)


def lies(form: Tensor) -> tuple[int, tuple[tuple[int, int], ...]]:
    return int(form.storage_offset()), _steps(form)


def _steps(form: Tensor) -> tuple[tuple[int, int], ...]:
    """Sizes and strides, except of dimensions with one element: their stride does not matter."""
    steps = zip(form.size(), form.stride(), strict=True)
    return tuple((number, step) for number, step in steps if number > 1)


def weights_in(contents: Any, path: Path) -> Mapping[str, Any]:
    """The weights in a checkpoint, or in a model's state dict, if all of them can be averaged."""
    bare = (
        isinstance(contents, Mapping) and _KEY not in contents and contents and is_state(contents)
    )
    state = contents if bare else named_weights(contents, "model")
    if not isinstance(state, Mapping):
        found = f"a {type(contents).__name__}"
        if isinstance(contents, Mapping):
            found = ", ".join(map(str, contents)) or "nothing"
        raise CheckpointError(f"{path} has no {_KEY} to average; found {found}")
    for key, value in state.items():
        if isinstance(value, Tensor) and not is_plain(value):
            raise CheckpointError(
                f"{place_of(key)} in {path} is not a dense tensor and cannot be averaged: save "
                "tensor.to_dense()"
            )
        if isinstance(value, Tensor) and not _can_compute_with(value.dtype):
            raise CheckpointError(
                f"{place_of(key)} in {path} is {_described(value)}, with which torch cannot "
                "compute: save it in another dtype"
            )
    return state


def _can_compute_with(dtype: torch.dtype) -> bool:
    if dtype.itemsize > 1 or not dtype.is_floating_point:
        return True
    try:
        torch.zeros(1, dtype=torch.uint8, device="cpu").view(dtype).float().to(dtype)
    except RuntimeError:  # 4-bit numbers, two in a byte
        return False
    return True


def place_of(key: str) -> str:
    return f"{_KEY}[{key!r}]"


def _kind(value: Any) -> tuple[object, ...]:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else (type(value),)


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
