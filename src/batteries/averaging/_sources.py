"""Checkpoint files that are averaged: what is in them, and where each tensor's bytes stand."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from batteries._files import PathLike
from batteries.checkpoint._archive import Form, form_of, is_plain
from batteries.checkpoint._forms import is_sharded
from batteries.checkpoint._storage import CheckpointError, is_state
from batteries.checkpoint._stream import Stream

_KEY = "model_state_dict"


@dataclass
class Part:
    """Memory that one or several tensors of a state lie in.

    >>> Part(8, {"weight": form_of(torch.ones(2))}).forms["weight"].size
    torch.Size([2])
    """

    size: int  # bytes
    forms: dict[str, Form]  # of the tensors, by their names


class Source:
    """A checkpoint file whose tensors are read by name, in any order.

    >>> save_checkpoint({"model_state_dict": {"weight": torch.ones(2)}}, "a.pth")
    >>> with ExitStack() as stack:
    ...     Source.opened("a.pth", stack).read("weight", at=4, size=4).view(torch.float32)
    tensor([1.])
    """

    @classmethod
    def opened(cls, path: PathLike, stack: ExitStack) -> Source:
        """One that is closed, and verified, with the stack.

        Raises:
            FileNotFoundError: No such file.
            CheckpointError: Damaged, sharded, or without weights that can be averaged.
        """
        if is_sharded(path):
            raise CheckpointError(
                f"{path} is sharded: make a file of it first, with checkpoint.consolidate(path, "
                "out)"
            )
        return cls(stack.enter_context(Stream.opened(path)))

    def __init__(self, stream: Stream) -> None:
        self.path = stream.path
        self.state = weights_in(stream.contents, stream.path)
        self._stream, self._cursor = stream, stream.cursor()
        self._tensors = {
            key: value
            for key, value in self.state.items()
            if isinstance(value, Tensor) and value.numel()
        }
        self._begins = {  # in the file
            key: stream.offset(tensor) + int(tensor.storage_offset()) * tensor.itemsize
            for key, tensor in self._tensors.items()
        }

    def check_alike(self, other: Source) -> None:
        """Raise if two files have other names, shapes or dtypes.

        Raises:
            CheckpointError: They have: with the files and the name.
        """
        for here, there in ((self, other), (other, self)):
            for key in here.state:
                if key not in there.state:
                    raise CheckpointError(
                        f"{place_of(key)} is in {here.path} but not in {there.path}: average "
                        "checkpoints of one model"
                    )
        for key, value in self.state.items():
            forms = _described(value), _described(other.state[key])
            if forms[0] != forms[1]:
                raise CheckpointError(
                    f"{place_of(key)} is {forms[0]} in {self.path} but {forms[1]} in "
                    f"{other.path}: average checkpoints of one model"
                )

    def parts(self, others: Sequence[Source] = ()) -> list[Part]:
        """The memory of all tensors, in the order of the file.

        What shares it here and in all the others shares it in a part; what is tied here and apart
        in one of the others is apart.
        """
        sources = (self, *others)
        groups: dict[tuple[int, ...], list[str]] = {}
        for key in self._tensors:
            memory = (source._stream.offset(source._tensors[key]) for source in sources)
            groups.setdefault(tuple(memory), []).append(key)
        ordered = sorted(groups.items(), key=lambda item: item[0])
        return [part for _, keys in ordered for part in self._parts_of(keys, sources)]

    def _parts_of(self, keys: list[str], sources: Sequence[Source]) -> Iterable[Part]:
        """The parts of tensors that share their memory, whichever the file."""
        parts: dict[object, Part] = {}
        places = {key: [_lies(source._tensors[key]) for source in sources] for key in keys}
        alike = all(place == among[0] for among in places.values() for place in among)
        for key in keys:
            tensor, place = self._tensors[key], None
            form, size = form_of(tensor), tensor.untyped_storage().nbytes()
            if _reach(tensor) < tensor.numel():  # an expanded one, in full
                form = form_of(torch.empty_like(tensor, memory_format=torch.contiguous_format))
                size, place = tensor.nbytes, key
            elif not alike and len(keys) > 1:  # one memory, divided in another way
                whole = torch.empty_like(tensor)
                form = form._replace(offset=0, stride=whole.stride())
                size, place = whole.untyped_storage().nbytes(), str(places[key])
            part = parts.setdefault(place, Part(size, {}))
            part.forms[key] = form
            if next(iter(part.forms.values())).dtype != form.dtype:
                raise CheckpointError(
                    f"{place_of(key)} in {self.path} shares its memory with another dtype: cannot "
                    "average it"
                )
        return parts.values()

    def lies_as(self, key: str, form: Form) -> bool:
        """Whether a tensor's bytes stand in the file in one piece, in the order of a form."""
        tensor = self._tensors[key]
        whole = _reach(tensor) == tensor.numel() and not self._begins[key] % tensor.itemsize
        return whole and _steps(tensor.size(), tensor.stride()) == _steps(form.size, form.stride)

    def room(self, key: str, at: int) -> int:
        """How many bytes of a tensor `read` gives at most, from there."""
        return self._cursor.room(self._begins[key] + at)

    def read(self, key: str, at: int, size: int) -> Tensor:
        """Bytes of a tensor; the memory is used again."""
        return self._cursor.read(self._begins[key] + at, size)

    def size(self, key: str) -> int:
        """How many bytes there are from the first element of a tensor to its last."""
        return _reach(self._tensors[key]) * self._tensors[key].itemsize

    def tensor(self, key: str, memory: Tensor) -> Tensor:
        """A tensor as a whole, in (at least `size`,) uint8."""
        tensor, data, at = self._tensors[key], memory[: self.size(key)], 0
        while at < len(data):
            piece = self.read(key, at, min(len(data) - at, self.room(key, at)))
            data[at : at + len(piece)] = piece
            at += len(piece)
        return data.view(tensor.dtype).as_strided(tensor.size(), tensor.stride())

    def again(self) -> Source:
        """The same with a place of its own, for another thread."""
        same = copy.copy(self)
        same._cursor = self._stream.cursor()
        return same


def _reach(tensor: Tensor) -> int:
    """From the first element of a tensor to its last, in elements of its memory."""
    steps = zip(tensor.size(), tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in steps)


def _lies(tensor: Tensor) -> tuple[int, list[tuple[int, int]]]:
    """Where a tensor begins in its memory, and how it goes on."""
    return int(tensor.storage_offset()), _steps(tensor.size(), tensor.stride())


def _steps(size: Iterable[int], stride: Iterable[int]) -> list[tuple[int, int]]:
    """How a tensor lies: where a dimension has one element, its stride does not matter."""
    return [(number, step) for number, step in zip(size, stride, strict=True) if number > 1]


def weights_in(contents: Any, path: Path) -> Mapping[str, Any]:
    """The weights in a checkpoint, or in the bare state dict of a model.

    >>> weights_in({"model_state_dict": {"weight": torch.ones(2)}, "epoch": 3}, Path("a.pth"))
    {'weight': tensor([1., 1.])}

    Raises:
        CheckpointError: There are none, or some that cannot be averaged.
    """
    bare = (
        isinstance(contents, Mapping) and _KEY not in contents and contents and is_state(contents)
    )
    state = contents if bare else contents.get(_KEY) if isinstance(contents, Mapping) else None
    if not isinstance(state, Mapping):
        found = ", ".join(map(str, contents)) if isinstance(contents, Mapping) else type(contents)
        raise CheckpointError(f"{path} has no {_KEY} to average; found {found}")
    for key, value in state.items():
        if isinstance(value, Tensor) and not is_plain(value):
            raise CheckpointError(
                f"{place_of(key)} in {path} is not a dense tensor: cannot average it"
            )
        if isinstance(value, Tensor) and not _can_compute_with(value.dtype):
            raise CheckpointError(
                f"{place_of(key)} in {path} is {_described(value)}: torch cannot compute with it; "
                "average its values in another dtype"
            )
    return state


def _can_compute_with(dtype: torch.dtype) -> bool:
    if dtype.itemsize > 1 or not dtype.is_floating_point:
        return True
    try:
        torch.zeros(1, dtype=torch.uint8).view(dtype).float().to(dtype)
    except RuntimeError:  # numbers of four bits, two in a byte
        return False
    return True


def place_of(key: str) -> str:
    """What messages call one of the weights.

    >>> place_of("weight")
    "model_state_dict['weight']"
    """
    return f"{_KEY}[{key!r}]"


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
