"""Which attributes of an object have changed between two saves, while its state has not."""

from __future__ import annotations

import functools
import hashlib
import random
import re
import sys
import sysconfig
import weakref
from collections import deque
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from enum import Enum
from itertools import chain, islice
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

PLAIN = (int, float, complex, str, bytes, bool, type(None), np.generic, Enum, PurePath)
CONTAINERS = (list, tuple, dict, set, frozenset, deque)
# Times, caches and counts of calls differ in each run. A resumed run does not need them.
_PASSING = re.compile(
    r"(^|_)(cached?|caches|memo|times?|timer|clock|stamp|timestamp|elapsed|started|tic|t0|calls?)(_|$)"
)
_LIBRARY = re.compile(
    rf"site-packages|dist-packages|<frozen|{re.escape(sysconfig.get_path('stdlib'))}"
)
_OF_MODULES = {*vars(nn.Module()), "_compiled_call_impl", "_forward_hooks_with_kwargs"}
_VALUES, _BYTES = 500, 2**18  # larger values have no digest
_NUMBERS = (Tensor, nn.Parameter, np.ndarray)
_WIDE = 100  # items of a container to look at
_OBJECTS = 100  # digests of so many objects are kept


class _Seen(NamedTuple):
    part: Callable[[], Any]  # a weak reference if the object allows one
    held: dict[str, str | None]  # digests of its attributes
    state: str


_SEEN: dict[int, _Seen] = {}


def changed(part: Any, held: Mapping[str, Any], state: Any, apart: set[int]) -> list[str]:
    """The attributes that have changed since the last call, if the state has not changed.

    Only these count: plain values, containers, tensors, arrays, generators, weights of modules,
    and objects of the program's own classes, which consist of them.

    Args:
        held: The attributes to look at.
        apart: The ids of objects whose changes do not count.
    """
    now = digest_of(state, whole=True)
    if now is None:  # an object with a large state saves what it remembers
        _SEEN.pop(id(part), None)
        return []
    own = {name: digest_of(value, apart) for name, value in lasting(held).items()}
    before = _SEEN.get(id(part))
    known = before is not None and before.part() is part
    if len(_SEEN) >= _OBJECTS:
        _SEEN.clear()
    _SEEN[id(part)] = _Seen(before.part if before and known else _reference(part), own, now)
    if before is None or not known or before.state != now:
        return []
    pairs = ((name, before.held.get(name), own[name]) for name in sorted(own))
    return [name for name, one, two in pairs if one and two and one != two]


def attributes(part: Any) -> dict[str, Any]:
    """The attributes of an object. A module's weights and parts are among them."""
    held = {name: getattr(part, name) for name in _slots(type(part)) if hasattr(part, name)}
    held |= getattr(part, "__dict__", {})
    if not isinstance(part, nn.Module):
        return held
    return {key: held[key] for key in held if key not in _OF_MODULES} | _weights_of(part)


def _weights_of(module: nn.Module) -> dict[str, Any]:
    return {**module._parameters, **module._buffers, **module._modules}


def lasting(held: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes whose names are not those of times, caches or counts of calls."""
    return {name: value for name, value in held.items() if not _PASSING.search(name)}


def _slots(kind: type) -> Iterator[str]:
    for each in kind.__mro__:
        named = vars(each).get("__slots__", ())
        names = (named,) if isinstance(named, str) else named
        yield from (name for name in names if name[:2] != "__")


def _reference(part: Any) -> Callable[[], Any]:
    number = id(part)
    try:
        return weakref.ref(part, lambda _: _SEEN.pop(number, None))
    except TypeError:
        return lambda: part


def ids_in(part: Any) -> set[int]:
    """The ids of an object, of its attributes, and of all parts of the modules among them."""
    if isinstance(part, nn.Module):
        return {id(each) for each in chain(part.modules(), part.parameters(), part.buffers())}
    held = attributes(part).values()
    inner = (ids_in(value) for value in held if issubclass(type(value), nn.Module))
    return {id(part), *map(id, held)}.union(*inner)


@functools.cache
def is_library(module: str) -> bool:
    """Whether a module, by its name, belongs to Python or to an installed package."""
    ours = module.partition(".")[0] in ("torch", "batteries")
    file = getattr(sys.modules.get(module), "__file__", None)
    return ours or (in_library(file) and module != "__main__")


def in_library(file: str | None) -> bool:
    return file is None or bool(_LIBRARY.search(file))


def digest_of(value: Any, apart: Container[int] = (), *, whole: bool = False) -> str | None:
    """A digest of a value; None if it is too large, or cannot be read.

    Args:
        apart: The ids of objects that are left out.
        whole: Whether everything counts. By default, objects of libraries, times, and the items of
            a container after the first 100 are left out.
    """
    digest = _Digest(apart, whole)
    with suppress(Exception):  # raised by methods of the program, or by tensors without numbers
        digest.add(value)
        return digest.text()
    return None


class _Digest:
    def __init__(self, apart: Container[int], whole: bool) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._values, self._bytes = _VALUES, _BYTES
        self._apart, self._whole = apart, whole
        self._kept: dict[int, Any] = {}  # the id of a freed object may recur

    def text(self) -> str:
        return self._hash.hexdigest()

    def add(self, value: Any) -> None:
        self._values -= 1
        if self._values < 0:
            raise ValueError("the value is too large")
        if isinstance(value, PLAIN):
            moment = type(value) is float and 1e9 < value < 4e9  # what time.time() returns
            self._note("a time" if moment and not self._whole else value)
        elif id(value) not in self._kept and id(value) not in self._apart:
            self._kept[id(value)] = value
            self._add_parts(value)

    def _note(self, value: Any) -> None:
        self._hash.update(f"{type(value).__name__} {value!r};".encode(errors="replace"))

    def _add_parts(self, value: Any) -> None:
        if isinstance(value, Tensor | np.ndarray):
            self._add_numbers(value)
        elif isinstance(value, set | frozenset):
            self._note(sorted(repr(each) for each in self._first(value) if isinstance(each, PLAIN)))
        elif isinstance(value, dict):
            self._add_all(chain.from_iterable(self._first(value.items())))
        elif isinstance(value, CONTAINERS):
            self._add_all(self._first(value))
        elif type(value) is random.Random:
            self._note(value.getstate())
        elif isinstance(value, np.random.Generator):
            self.add(value.bit_generator.state)
        elif isinstance(value, np.random.RandomState | torch.Generator):
            self.add(value.get_state())
        elif isinstance(value, nn.Module):
            self._add_all(_weights_of(value).values())
        elif self._whole:
            raise TypeError("the state has an object")
        elif not is_library(str(type(value).__module__)) and not isinstance(value, Optimizer):
            self._add_all(chain.from_iterable(lasting(attributes(value)).items()))

    def _first(self, values: Collection[Any]) -> Iterable[Any]:
        self._note(len(values))
        return values if self._whole else islice(values, _WIDE)

    def _add_all(self, values: Iterable[Any]) -> None:
        for value in values:
            self.add(value)

    def _add_numbers(self, value: Any) -> None:
        self._bytes -= value.nbytes
        if self._bytes < 0 or type(value) not in _NUMBERS or value.dtype == object:
            raise ValueError("the tensor is too large, or of a kind such as DTensor")
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        self._hash.update(f"{value.shape} {value.dtype};".encode())
        self._hash.update(np.ascontiguousarray(value).view(np.uint8).data)
