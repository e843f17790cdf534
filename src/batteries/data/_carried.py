"""What a dataset carries from one pass into the next, and a resumed run does not have."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import reduce
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from batteries._changes import PLAIN, is_library, lasting
from batteries._warnings import warn
from batteries.data._copies import ALONE, copy_from, pickled

_MOST = 100_000  # items of a list to look at
_DEPTH = 3  # of objects in objects


def plain_values(thing: Any, place: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, str]]:
    """The plain values of a dataset, and of datasets and the program's own objects in it."""
    for name, value in lasting(getattr(thing, "__dict__", {})).items():
        if isinstance(value, PLAIN):
            yield place + name, repr(value)
        elif depth and _is_entered(value):
            yield from plain_values(value, f"{place}{name}.", depth - 1)


def warn_of_old_values(dataset: Any, before: dict[str, str], now: dict[str, str]) -> None:
    """Warn if the program has changed values since the workers were started. They keep the old."""
    names = [name for name in before if before[name] != now.get(name, before[name])]
    if names:
        warn(
            f"{type(dataset).__name__} has changed since its workers were started "
            f"({', '.join(names)}): persistent workers keep the old values, and a resumed run "
            "starts with the new ones. Pass persistent_workers=False, or share the value with the "
            "workers: torch.tensor(0).share_memory_()",
        )


class Orders:
    """The orders of the lists in a dataset at the beginning of a pass."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._lists = dict(_lists_in(dataset))

    def warn_of_change(self, begin: Callable[[Any], None]) -> bool:
        """Warn if the pass has changed an order, and the next order depends on it.

        This is tried on copies: a dataset may sort a list before it shuffles it.

        Args:
            begin: Reads the first item of a copy.

        Returns:
            Whether an order has changed.
        """
        now = dict(_lists_in(self._dataset))
        names = [name for name, own in self._lists.items() if _is_reordered(own, now.get(name))]
        for name in names[:1]:
            if self._differs(name, begin):
                kind = type(self._dataset).__name__
                warn(
                    f"{kind} puts its list {name} into another order when it is read, and the next "
                    "pass begins with that order: a run that resumes gets other orders. Shuffle a "
                    f"copy, random.sample(list(self.{name}), len(self.{name})), or sort it first",
                )
        return bool(names)

    def _differs(self, name: str, begin: Callable[[Any], None]) -> bool:
        state = pickled(self._dataset, apart=ALONE)
        with suppress(Exception):  # of the user's code, which did not expect to be copied
            assert state is not None
            *path, last = name.split(".")
            orders = []
            for own in (None, self._lists[name]):
                copied = copy_from(state)
                if own is not None:
                    setattr(reduce(getattr, path, copied), last, own)
                begin(copied)
                orders.append(_items(dict(_lists_in(copied))[name]))
            return bool(orders[0] != orders[1])
        return False


def _lists_in(thing: Any, place: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Any]]:
    """Copies of the lists and arrays, by their places."""
    for name, value in getattr(thing, "__dict__", {}).items():
        if isinstance(value, Tensor):
            value = value.numpy() if value.is_cpu else []
        if isinstance(value, list) or (isinstance(value, np.ndarray) and value.ndim == 1):
            if 1 < len(value) <= _MOST:
                yield place + name, value.copy()
        elif depth and isinstance(value, Dataset):
            yield from _lists_in(value, f"{place}{name}.", depth - 1)


def _is_entered(value: Any) -> bool:
    return isinstance(value, Dataset) or not is_library(str(type(value).__module__))


def _items(values: Any) -> list[Any]:
    return [repr(each) for each in values]


def _is_reordered(one: Any, two: Any) -> bool:
    if type(one) is not type(two) or len(one) != len(two):
        return False
    same = map(operator.is_, one, two) if isinstance(one, list) else one == two
    if all(same):
        return False
    first, second = map(_items, (one, two))
    return first != second and sorted(first) == sorted(second)
