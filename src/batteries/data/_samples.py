"""Map-style datasets, read so that a sample's random numbers depend only on its key."""

from __future__ import annotations

import functools
import operator
import os
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import (
    Dataset,
    StackDataset,
    Subset,
    TensorDataset,
    default_collate,
    default_convert,
)

from batteries._seeding import rekey
from batteries.data._failing import called
from batteries.data._generators import generators_in, rekey_each

_SAMPLE, _SAMPLES = 2, 5  # the uses of keys


class Ask(NamedTuple):
    """The request for a batch."""

    seed: int
    epoch: int
    indices: list[Any]
    again: list[int] | None = None  # how often each index came before in the epoch; None: never


class Samples(Dataset[Any]):
    """A dataset whose samples are seeded by seed, epoch and index.

    An index that is repeated in an epoch gets another seed. A dataset with `__getitems__` is seeded
    once for all indices of a batch.

    Args:
        exact: Raise if a batch has another number of samples than indices.
        collate: The user's `collate_fn`, which may own generators too.
    """

    def __init__(self, dataset: Any, exact: bool = False, collate: Any = None) -> None:
        self.dataset = dataset
        self._exact = exact
        self._collate = collate
        self._collates_only = collate in (None, default_collate, default_convert)
        self._reads_batches = reads_batches(dataset)
        self._own: dict[str, Any] = {}  # the dataset's own generators, in this process
        self._pid, self._first = 0, True

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_own": {}, "_pid": 0}

    def __getitem__(self, ask: Ask) -> Any:
        [sample] = self._one_by_one(ask)
        return sample

    def __getitems__(self, ask: Ask) -> Any:
        return self._together(ask) if self._reads_batches else self._one_by_one(ask)

    def generators(self) -> dict[str, Any]:
        """The generators that dataset and `collate_fn` own, by their places."""
        return generators_in(dataset=self.dataset, collate_fn=self._collate)

    def _keyed(self, read: Callable[[Any], Any], what: Any, *key: int) -> Any:
        rekey(*key)
        if self._own:
            rekey_each(self._own, *key)
        value = read(what)
        if not self._first:
            return value
        # A dataset may create its generators at its first read in a worker.
        self._first, known = False, {id(generator) for generator in self._own.values()}
        self._own = self.generators()
        new = {id(generator) for generator in self._own.values()} - known
        return self._keyed(read, what, *key) if new else value

    @property
    def _draws_nothing(self) -> bool:
        return self._collates_only and _is_plain(self.dataset)

    def look(self) -> None:
        """Find the dataset's own generators, once in each process.

        The search may take 100 ms, and 5 ms in a process whose parent has searched before a fork.
        """
        if self._pid != os.getpid() and not self._draws_nothing:
            self._pid, self._first, self._own = os.getpid(), True, self.generators()

    def _one_by_one(self, ask: Ask) -> list[Any]:
        seed, epoch, indices, again = ask
        read = functools.partial(called, "dataset[{1!r}]", operator.getitem, self.dataset)
        samples = []
        self.look()
        for place, index in enumerate(indices):
            number = index if type(index) is int else number_of(index)
            more = (again[place],) if again and again[place] else ()
            samples.append(self._keyed(read, index, _SAMPLE, seed, epoch, number, *more))
        return samples

    def _together(self, ask: Ask) -> Any:
        seed, epoch, indices, again = ask
        if self._draws_nothing:
            return self._batch(indices)
        plain = set(map(type, indices)) == {int}  # faster than number_of for each index
        numbers = indices if plain else map(number_of, indices)
        self.look()
        return self._keyed(self._batch, indices, _SAMPLES, seed, epoch, *numbers, *(again or ()))

    def _batch(self, indices: list[Any]) -> Any:
        samples = called("dataset.__getitems__({!r})", self.dataset.__getitems__, indices)
        if self._exact and len(samples) != len(indices):
            raise ValueError(
                f"{type(self.dataset).__name__}.__getitems__ returned {len(samples)} "
                f"sample{'s' * (len(samples) != 1)} for {len(indices)} indices, {indices!r}; "
                "expected one for each"
            )
        return samples


def number_of(index: Any) -> int:
    """The integer that stands for an index in a key."""
    whole = isinstance(index, int | np.integer)
    return int(index) if whole else zlib.crc32(repr(index).encode())


def reads_batches(dataset: Any) -> bool:
    """Whether a dataset has its own `__getitems__`; torch's `Subset` only calls the inner one's."""
    if type(dataset) is Subset:
        return reads_batches(dataset.dataset)
    if type(dataset) is StackDataset:
        own = dataset.datasets
        return any(map(reads_batches, own.values() if isinstance(own, dict) else own))
    return callable(getattr(dataset, "__getitems__", None))


def draws(dataset: Any) -> bool:
    """Whether reading a sample may use random numbers; a `TensorDataset` uses none."""
    while type(dataset) is Subset:
        dataset = dataset.dataset
    return type(dataset) is not TensorDataset


def _is_plain(dataset: Any) -> bool:
    """Whether it is a Hugging Face dataset without a transform, which uses no random numbers."""
    own = type(dataset).__module__ == "datasets.arrow_dataset"
    return own and getattr(dataset, "_format_type", "custom") != "custom"
