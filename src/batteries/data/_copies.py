"""Copies of a stream, and of a sampler without the data that it refers to."""

from __future__ import annotations

import io
import pickle
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

_MOST = 2**23  # bytes
ALONE = (nn.Module, type, FunctionType, BuiltinFunctionType, MethodType)
_SHARED = (Dataset, DataLoader, *ALONE)


class Pickled(NamedTuple):
    """The state of a sampler or stream."""

    data: bytes  # equal if nothing has changed
    shared: dict[int, Any]  # what the copies share with the original


class _File(io.BytesIO):
    def write(self, data: Any) -> int:
        if self.tell() + len(data) > _MOST:
            raise ValueError("too large to be copied")
        return super().write(data)


class _Pickler(pickle.Pickler):
    def __init__(self, file: _File, apart: tuple[Any, ...]) -> None:
        super().__init__(file)
        self._apart = apart
        self.shared: dict[int, Any] = {}

    def reducer_override(self, value: Any) -> Any:  # is not called for numbers, lists and dicts
        if isinstance(value, np.ndarray | Tensor) and value.nbytes > _MOST:
            raise ValueError("too large to be copied")  # a memmap would be read into the memory
        if value is _shared or not isinstance(value, self._apart):
            return NotImplemented
        self.shared[id(value)] = value
        return _shared, (id(value),)


class _Unpickler(pickle.Unpickler):
    def __init__(self, state: Pickled) -> None:
        super().__init__(io.BytesIO(state.data))
        self._shared = state.shared

    def find_class(self, module: str, name: str) -> Any:
        own = (module, name) == (__name__, _shared.__name__)
        return self._shared.__getitem__ if own else super().find_class(module, name)


def _shared(number: int) -> Any:
    raise NotImplementedError(number)  # stands for what is shared


def pickled(thing: Any, apart: tuple[Any, ...] = _SHARED) -> Pickled | None:
    """The state of a sampler or stream; None if it cannot be copied, or is large.

    Args:
        apart: The kinds of objects that its copies share with it.
    """
    pickler = _Pickler(file := _File(), apart)
    try:
        pickler.dump(thing)
    except Exception:  # of many kinds: locks, open files, generators
        return None
    return Pickled(file.getvalue(), pickler.shared)


def copy_from(state: Pickled) -> Any:
    return _Unpickler(state).load()
