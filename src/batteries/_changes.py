"""Which attributes of an object have changed between two saves, while its state has not."""

from __future__ import annotations

import functools
import hashlib
import random
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Set
from datetime import date, time, timedelta
from enum import Enum
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (int, float, complex, str, bytes, bool, type(None), np.generic, Enum, PurePath)
PLAIN += (date, time, timedelta)  # type: ignore[assignment]
CONTAINERS = (list, tuple, dict, set, frozenset, deque)
# Schedulers refer to an optimizer, which the program saves or not.
_APART = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, torch.optim.Optimizer)
_OF_MODULES = {*vars(nn.Module()), "_compiled_call_impl", "_forward_hooks_with_kwargs"}
_VALUES, _BYTES = 5000, 2**22  # what a digest looks at
_OBJECTS = 1000  # whose digests are kept


class _Seen(NamedTuple):
    part: Callable[[], Any]  # a weak reference if the object allows one
    held: dict[str, str]  # digests of its attributes
    state: str


_SEEN: dict[int, _Seen] = {}


def changed(part: Any, held: dict[str, Any], state: Any, beside: Iterable[Any]) -> list[str]:
    """The attributes that have changed since the last call, if the state has not.

    Args:
        held: The attributes to look at.
        beside: Objects whose changes do not count.
    """
    now = _Digest()
    now.add(state)
    if not now.whole:  # a large state is that of an object with a memory
        _SEEN.pop(id(part), None)
        return []
    apart = _ids_in(beside, part)
    own = {name: _digest_of(value, apart) for name, value in held.items()}
    before = _SEEN.get(id(part))
    if before is None or before.part() is not part:
        before = _Seen(_reference(part), own, now.text())
    if len(_SEEN) >= _OBJECTS:
        _SEEN.clear()
    _SEEN[id(part)] = _Seen(before.part, own, now.text())
    if before.state != now.text():
        return []
    return [name for name in sorted(own) if before.held.get(name, own[name]) != own[name]]


def attributes(part: Any) -> dict[str, Any]:
    """The attributes of an object; of a module its buffers and parts, too."""
    kind: Any = type(part)
    held = {name: getattr(part, name) for name in _slots(kind) if hasattr(part, name)}
    held |= getattr(part, "__dict__", {})
    if not isinstance(part, nn.Module):
        return held
    own = {name: value for name, value in held.items() if name not in _OF_MODULES}
    return {**own, **part._parameters, **part._buffers, **part._modules}


@functools.cache
def _slots(kind: type) -> list[str]:
    own = [each for each in kind.__mro__ if each.__module__ != "builtins"]
    pairs = [pair for each in own for pair in vars(each).items()]
    return [name for name, value in pairs if isinstance(value, MemberDescriptorType)]


def _reference(part: Any) -> Callable[[], Any]:
    number = id(part)
    try:
        return weakref.ref(part, lambda _: _SEEN.pop(number, None))
    except TypeError:
        return lambda: part


def _ids_in(beside: Iterable[Any], part: Any) -> set[int]:
    found = set()
    for each in beside:
        if each is part:
            continue
        found.add(id(each))
        if isinstance(each, nn.Module):
            for module in each.modules():
                inner = (module, *module._parameters.values(), *module._buffers.values())
                found.update(map(id, inner))
        else:
            held = attributes(each).values()
            found |= {id(value) for value in held if not isinstance(value, PLAIN)}
    return found


def _digest_of(value: Any, apart: set[int]) -> str:
    digest = _Digest(apart)
    digest.add(value)
    return digest.text()


class _Digest:
    """A digest of a value and of what it holds. `whole` is False if something was left out."""

    def __init__(self, apart: Iterable[int] = ()) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._values, self._bytes = _VALUES, _BYTES
        self._known = set(apart)
        self._kept: list[Any] = []  # the id of a freed object may recur
        self.whole = True

    def text(self) -> str:
        return self._hash.hexdigest()

    def add(self, value: Any) -> None:
        self._values -= 1
        if self._values < 0:
            self.whole = False
        elif isinstance(value, PLAIN):
            self._note(value)
        elif id(value) not in self._known and not isinstance(value, _APART):
            self._known.add(id(value))
            self._kept.append(value)
            self._add_parts(value)

    def _note(self, value: Any) -> None:
        self._hash.update(f"{type(value).__name__} {value!r};".encode(errors="replace"))

    def _add_parts(self, value: Any) -> None:
        if isinstance(value, Tensor | np.ndarray):
            self._add_numbers(value)
        elif isinstance(value, Mapping):
            self._note(len(value))
            self._add_all(part for pair in value.items() for part in pair)
        elif isinstance(value, Set):
            self._note(len(value))
            self._note(sorted(repr(each) for each in value if isinstance(each, PLAIN)))
        elif isinstance(value, CONTAINERS):
            self._note(len(value))
            self._add_all(value)
        elif isinstance(value, random.Random):
            self._note(value.getstate() if type(value) is random.Random else None)
        elif isinstance(value, np.random.Generator):
            self.add(value.bit_generator.state)
        elif isinstance(value, np.random.RandomState | torch.Generator):
            self.add(value.get_state())
        else:
            self._add_all(part for pair in attributes(value).items() for part in pair)

    def _add_all(self, values: Iterable[Any]) -> None:
        for value in values:
            if self._values < 0:
                break
            self.add(value)

    def _add_numbers(self, value: Any) -> None:
        self._bytes -= value.nbytes
        if self._bytes < 0:
            self.whole = False
            return
        try:
            if isinstance(value, Tensor):
                value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            self._hash.update(f"{value.shape} {value.dtype};".encode())
            self._hash.update(np.ascontiguousarray(value).data)
        except Exception:  # of tensors without numbers here, and of arrays of objects
            self.whole = False
