"""Random generators that a dataset owns: they are found, and seeded like the global ones."""

from __future__ import annotations

import dis
import functools
import hashlib
import pickle
import random
import struct
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batteries._changes import in_library


class _OpenCV:
    """The generator of OpenCV in this thread, which is no object."""

    names = frozenset({"randn", "randu", "randShuffle", "kmeans"})  # the functions that use it

    def seed(self, number: int) -> None:
        sys.modules["cv2"].setRNGSeed(number % 2**31)


_of_opencv = _OpenCV()
_MOST = 5000  # objects to look at
_WIDE, _FEW = 300, 10  # of a container with more than 300 items (data), only 10 are looked at
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, types.ModuleType)
_DATA = (*_PLAIN, Tensor, np.ndarray)
_KINDS = (
    random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator,
    torch.Generator, _OpenCV,
)  # fmt: skip
_LISTS = (list, tuple, set, frozenset, deque)
_EMPTY = {*_LISTS, dict, OrderedDict}
_IDLE = {
    *_PLAIN, types.WrapperDescriptorType, types.MethodDescriptorType, types.GetSetDescriptorType,
}  # fmt: skip
_GLOBALS = {"LOAD_GLOBAL", "LOAD_NAME"}
_FOREIGN = ("builtins", "torch")
Parts = Iterator[tuple[str, Any]]


def generators_in(*, beyond: tuple[type, ...] = (), **roots: Any) -> dict[str, Any]:
    """The generators that can be reached from some objects, by their places.

    The search follows attributes, containers, closures, classes with their methods, and the globals
    that a function uses. It enters functions of installed libraries only where they are found in
    attributes. The global generators, which `rekey` seeds, are left out.

    Args:
        beyond: Kinds of objects that are not entered.
    """
    found: dict[str, Any] = {}
    seen: dict[int, Any] = {}
    queue = deque(roots.items())
    while queue and len(seen) < _MOST:
        place, thing = queue.popleft()
        kind: Any = type(thing)
        if id(thing) in seen or _is_one(kind, (*_DATA, *beyond)):
            continue
        seen[id(thing)] = thing
        if _is_one(kind, _KINDS):
            if not _is_global(thing):
                found[place] = thing
            continue
        parts = _parts(thing)
        if id(kind) not in seen:
            seen[id(kind)] = kind
            parts = chain(parts, ((f".{name}", part) for name, part in _of_class(kind)))
        with suppress(Exception):  # of attributes that foreign objects compute
            queue.extend((place + name, part) for name, part in parts if not _is_idle(part))
    return found


@functools.lru_cache(maxsize=10_000)
def _is_one(kind: type, kinds: tuple[type, ...]) -> bool:
    return issubclass(kind, kinds)


def _is_idle(part: Any) -> bool:
    """Whether a part is a plain value, or an empty container, of which modules have many."""
    return type(part) in _IDLE or (type(part) in _EMPTY and not part)


def _is_global(generator: Any) -> bool:
    bits = getattr(generator, "_bit_generator", generator)
    known = [random._inst, np.random.mtrand._rand, torch.default_generator]
    return bits is np.random.mtrand._rand._bit_generator or any(generator is one for one in known)


def _parts(thing: Any) -> Parts:
    if isinstance(thing, types.FunctionType):
        yield from _parts_of_function(thing)
    elif isinstance(thing, (types.MethodType, types.BuiltinMethodType)):
        yield ".__self__", thing.__self__
        yield "", getattr(thing, "__func__", None)
    elif isinstance(thing, functools.partial):
        yield from ((f".{name}", getattr(thing, name)) for name in ("func", "args", "keywords"))
    elif isinstance(thing, (staticmethod, classmethod)):
        yield "", thing.__func__
    elif isinstance(thing, property):
        yield "", thing.fget
    elif isinstance(thing, dict):
        yield from ((f"[{key!r}]", value) for key, value in _near(thing.items(), len(thing)))
    elif isinstance(thing, _LISTS):
        yield from ((f"[{place}]", value) for place, value in _near(enumerate(thing), len(thing)))
    own = getattr(thing, "__dict__", {})
    yield from ((f".{name}", value) for name, value in list(own.items()))
    kind: Any = type(thing)
    for name in _slots_of(kind):
        yield f".{name}", getattr(thing, name, None)


def _near(items: Iterable[tuple[Any, Any]], count: int) -> Iterator[tuple[Any, Any]]:
    near = islice(items, count if count <= _WIDE else _FEW)
    return (item for item in near if not _is_idle(item[1]))


def _parts_of_function(function: types.FunctionType) -> Parts:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f".{name}", cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield ".__defaults__", function.__defaults__
    yield ".__kwdefaults__", function.__kwdefaults__
    here, (names, attributes) = function.__module__, _names_in(function.__code__)
    foreign = in_library(function.__code__.co_filename)
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, types.FunctionType):
            if value.__module__ == here or not in_library(value.__code__.co_filename):
                yield f" -> {here}.{name}", value
        elif isinstance(value, types.ModuleType):
            if value.__name__ == "cv2" and _OpenCV.names & {*attributes}:
                yield " -> cv2", _of_opencv
            if not in_library(getattr(value, "__file__", None)):
                inside = ((each, vars(value).get(each)) for each in attributes)
                yield from ((f" -> {value.__name__}.{each}", part) for each, part in inside)
        elif isinstance(value, _KINDS) or not foreign:
            yield f" -> {here}.{name}", value


@functools.lru_cache(maxsize=10_000)
def _names_in(code: types.CodeType) -> tuple[list[str], list[str]]:
    """The globals and the attributes that a function uses, and the functions inside of it."""
    own = [each.argval for each in dis.get_instructions(code) if each.opname in _GLOBALS]
    attributes = list(code.co_names)
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            inner = _names_in(each)
            own, attributes = own + inner[0], attributes + inner[1]
    return list(dict.fromkeys(own)), list(dict.fromkeys(attributes))


@functools.cache
def _slots_of(kind: type) -> list[str]:
    return [
        name for name, value in _of_class(kind) if isinstance(value, types.MemberDescriptorType)
    ]


def _of_class(kind: type) -> list[tuple[str, Any]]:
    """The attributes and methods of a class and its bases, without those of Python and torch."""
    own = [each for each in kind.__mro__ if each.__module__.partition(".")[0] not in _FOREIGN]
    pairs = [pair for each in own for pair in vars(each).items()]
    return [
        pair for pair in pairs if pair[0][:2] != "__" or isinstance(pair[1], types.FunctionType)
    ]


def rekey_each(generators: Mapping[str, Any], *numbers: int) -> None:
    """Seed each generator by these numbers and by its place among the generators."""
    for which, generator in enumerate(generators.values()):
        packed = struct.pack(f"<{len(numbers)}Q", *(number % 2**64 for number in numbers))
        key = hashlib.blake2b(packed, digest_size=32, salt=struct.pack("<Q", which)).digest()
        seed = int.from_bytes(key[:8], "little")
        if isinstance(generator, random.Random | _OpenCV):
            generator.seed(seed)
        elif isinstance(generator, np.random.RandomState):
            generator.seed(seed % 2**32)
        elif isinstance(generator, np.random.BitGenerator):
            generator.state = _bits(generator, key, seed)
        elif isinstance(generator, torch.Generator):
            generator.manual_seed(seed >> 1)
        else:
            generator.bit_generator.state = _bits(generator.bit_generator, key, seed)


def _bits(bits: Any, key: bytes, seed: int) -> Any:
    if type(bits) is not np.random.PCG64:
        return type(bits)(seed).state
    # Ten times as fast as a seed. The step must be odd.
    state, step = (int.from_bytes(half, "little") for half in (key[:16], key[16:]))
    inner = {"state": state, "inc": step | 1}
    return {"bit_generator": "PCG64", "state": inner, "has_uint32": 0, "uinteger": 0}


def difference(one: Any, two: Any, place: str = "") -> str | None:
    """The first place where two samples differ; None if they are equal."""
    if type(one) is not type(two):
        return place
    pairs: Iterator[tuple[Any, Any, str]] | None = None
    if isinstance(one, Mapping) and one.keys() == two.keys():
        pairs = ((one[key], two[key], f"{place}[{key!r}]") for key in one)
    elif isinstance(one, list | tuple) and len(one) == len(two):
        pairs = ((*pair, f"{place}[{i}]") for i, pair in enumerate(zip(one, two, strict=True)))
    if pairs is not None:
        return next((found for pair in pairs if (found := difference(*pair)) is not None), None)
    return None if _same(one, two) else place


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor | np.ndarray):
        try:
            np.testing.assert_array_equal(np.asarray(one), np.asarray(two), strict=True)
        except AssertionError:
            return False
        return True
    try:
        if one == two:
            return True
    except Exception:  # for example, an array inside has no single truth value
        pass
    return pickle.dumps(one) == pickle.dumps(two)
