"""Move batches of any structure to a device."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections import UserDict
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

T = TypeVar("T")
Copy = Callable[[Tensor, torch.device], Tensor]
Move = Callable[[Any, torch.device, bool | Copy], Any]


def to_device(data: T, device: torch.device | str | int, *, non_blocking: bool = False) -> T:
    """Move the tensors anywhere inside `data` to a device.

    >>> batch = {"image": torch.zeros(2, 3), "name": ["a", "b"]}
    >>> batch = to_device(batch, "cpu")
    >>> batch["name"]
    ['a', 'b']

    Dicts, lists, tuples, namedtuples, dataclasses and Mappings are searched and keep their types.
    An object with its own method `to` is moved by that method. Everything else (strings, numbers,
    None, numpy arrays) stays the same.

    Args:
        device: A `torch.device`, a name, or a rank: the GPU of that number, or the CPU if there is
            no GPU.
        non_blocking: Do not wait for copies from pinned memory. It is passed to an
            object's own `to` if that method has such an argument.

    Raises:
        ValueError: There is no such device.
        TypeError: A Mapping, or a subclass of tuple, cannot be made again from its items.
    """
    moved: T = _MOVES[type(data)](data, known_device(device), non_blocking)
    return moved


t2d = to_device


def moved_by(copy: Copy, data: T, device: torch.device) -> T:
    """Move as `to_device` does, but copy each tensor on another device by `copy`."""
    moved: T = _MOVES[type(data)](data, device, copy)
    return moved


def _move_tensor(data: Tensor, device: torch.device, how: bool | Copy) -> Tensor:
    if data.device == device:
        return data
    if how is True or how is False:
        return data.to(device, non_blocking=how)
    return how(data, device)


def _move_list(data: list[Any], device: torch.device, how: bool | Copy) -> list[Any]:
    return [_MOVES[type(value)](value, device, how) for value in data]


def _move_tuple(data: tuple[Any, ...], device: torch.device, how: bool | Copy) -> Any:
    return tuple([_MOVES[type(value)](value, device, how) for value in data])


def _move_dict(data: dict[Any, Any], device: torch.device, how: bool | Copy) -> dict[Any, Any]:
    return {key: _MOVES[type(value)](value, device, how) for key, value in data.items()}


def _move_own_list(data: Any, device: torch.device, how: bool | Copy) -> Any:
    same = copy.copy(data)  # keeps its attributes
    same[:] = _move_list(data, device, how)
    return same


def _move_mapping(data: Any, device: torch.device, how: bool | Copy) -> Any:
    moved = _move_dict(data, device, how)
    if not isinstance(data, dict | UserDict):  # the copy of another Mapping may share the items
        return _rebuilt(data, moved)
    try:
        same = copy.copy(data)  # keeps attributes, such as the factory of a defaultdict
        for key, value in moved.items():
            same[key] = value
    except Exception as error:
        raise _no_way(data) from error
    return same


def _rebuilt(data: Any, items: Any) -> Any:
    try:
        return type(data)(items)
    except Exception as error:
        raise _no_way(data) from error


def _no_way(data: Any) -> TypeError:
    name = type(data).__name__
    return TypeError(
        f"a {name} of a batch cannot be made again from its items on the device: give it a method "
        f"`to(self, device)` that returns a moved {name}, or move its items yourself"
    )


def _move_dataclass(data: Any, device: torch.device, how: bool | Copy) -> Any:
    same = copy.copy(data)
    for field in dataclasses.fields(data):
        if hasattr(data, field.name):
            value = getattr(data, field.name)
            moved = _MOVES[type(value)](value, device, how)
            object.__setattr__(same, field.name, moved)  # also for a frozen dataclass
    return same


class _Moves(dict[type, Move]):
    """The function that moves each type; a new type is examined once."""

    def __missing__(self, kind: type) -> Move:
        self[kind] = _move_for(kind)
        return self[kind]


_MOVES = _Moves({Tensor: _move_tensor, list: _move_list, tuple: _move_tuple, dict: _move_dict})


def _move_for(kind: type) -> Move:
    if issubclass(kind, Tensor):
        return _move_tensor
    own = getattr(kind, "to", None)
    if callable(own):
        if _takes_non_blocking(kind, own):
            return lambda data, device, how: data.to(device, non_blocking=bool(how))
        return lambda data, device, _: data.to(device)
    if issubclass(kind, Mapping):  # before dataclasses: if a class is both, its items are moved
        return _move_mapping
    if dataclasses.is_dataclass(kind):
        return _move_dataclass
    if issubclass(kind, tuple):
        if hasattr(kind, "_fields"):
            return lambda data, *to: type(data)(*_move_list(data, *to))
        return lambda data, *to: _rebuilt(data, _move_list(data, *to))
    if issubclass(kind, list):
        return _move_own_list
    return lambda data, *_: data


def _takes_non_blocking(kind: type, to: Callable[..., Any]) -> bool:
    # torch's own methods take it in *args, **kwargs
    return issubclass(kind, PackedSequence | nn.Module) or (
        "non_blocking" in inspect.signature(to).parameters
    )


def known_device(device: torch.device | str | int) -> torch.device:
    """The device, or a ValueError if this machine does not have it."""
    hashable = isinstance(device, torch.device | str | int)
    return _known(device) if hashable else _known.__wrapped__(device)


@lru_cache(maxsize=256)
def _known(device: torch.device | str | int) -> torch.device:
    gpus = torch.cuda.device_count()
    if isinstance(device, int) and gpus == 0:
        return torch.device("cpu")
    try:
        known = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"unknown device {device!r}: expected a torch.device, a name such as 'cpu' or "
            "'cuda:0', or a rank"
        ) from None
    if known.type == "cuda" and (known.index or 0) >= gpus:
        choice = f"one of cuda:0 to cuda:{gpus - 1}" if gpus > 1 else "cuda:0" if gpus else "cpu"
        raise ValueError(
            f"there is no device {device!r}: this machine has {gpus} GPUs that PyTorch can use; "
            f"choose {choice}"
        )
    if known.type not in ("cpu", "cuda", "meta"):
        try:
            torch.empty(0, device=known)
        except Exception as error:
            why = str(error).partition(". ")[0]  # PyTorch goes on with a list of its backends
            raise ValueError(
                f"there is no device {device!r} on this machine: {why}; choose another, such as "
                "'cpu'"
            ) from None
    return known
