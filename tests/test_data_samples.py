"""Samples that come twice, batches that are read at once, and samplers of any length."""

from __future__ import annotations

import itertools
import random
import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    Dataset,
    IterableDataset,
    StackDataset,
    Subset,
    WeightedRandomSampler,
)

from batteries import accumulate, distributed, seed_all
from batteries.data import DataLoader


class Noisy(Dataset[Any]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        return index, random.random()


class Batched(Noisy):
    """Read as a whole, as Arrow and databases are."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [(index, random.random(), "of a batch") for index in indices]


class OnlyBatched:
    def __len__(self) -> int:
        return 12

    def __getitems__(self, indices: list[int]) -> list[int]:
        return indices


def as_it_is(samples: list[Any]) -> list[Any]:
    return samples


def loader(data: Any, **options: Any) -> DataLoader[Any]:
    return DataLoader(data, **{"batch_size": 4, "collate_fn": as_it_is, "seed": 3, **options})


def of(data: Any, **options: Any) -> list[Any]:
    return [sample for batch in loader(data, **options) for sample in batch]


class Often:
    """Each index three times, in an order of its own; `sized` samplers tell their length."""

    def __iter__(self) -> Iterator[int]:
        return iter((torch.randperm(36) % 12).tolist())


class SizedOften(Often):
    def __len__(self) -> int:
        return 36


class OftenBatches(Often):
    def __iter__(self) -> Iterator[Any]:
        order = list(super().__iter__())
        return iter([order[:7], order[7:20], order[20:]])


def options_of(kind: type[Any]) -> dict[str, Any]:
    name = "batch_sampler" if kind is OftenBatches else "sampler"
    return {name: kind(), "batch_size": 1 if kind is OftenBatches else 4}


@pytest.mark.parametrize("kind", [Often, SizedOften, OftenBatches])
def test_an_index_that_comes_again(kind: type[Any]) -> None:
    """It draws anew each time, the same with workers, and after a resume in any place."""
    expected = of(Noisy(), **options_of(kind))
    assert len({draw for _, draw in expected}) == 36
    first = {index: draw for index, draw in reversed(expected)}  # noqa: C416
    assert sorted(first.items()) == of(Noisy())  # as where no index comes twice
    data = loader(Noisy(), num_workers=1, **options_of(kind))
    seen = 0
    for batch in data:
        seen += len(batch)
        if seen > 12:
            break
    other = loader(Noisy(), **options_of(kind))
    other.load_state_dict(data.state_dict())  # beyond the length of the dataset
    assert [sample for batch in other for sample in batch] == expected[seen:]


class Endless(Often):
    """Draws from the generators of all, for ever; it notes how many it gave."""

    def __init__(self) -> None:
        self.given = 0

    def __iter__(self) -> Iterator[int]:
        while True:
            self.given += 1
            yield random.randrange(6) + int(torch.randint(6, ()))


class Remembering(Endless):
    """Begins where its state says, with numbers that no replay would give again."""

    def __init__(self, base: int = 0) -> None:
        super().__init__()
        self.base = base

    def __iter__(self) -> Iterator[int]:
        for number in super().__iter__():
            self.base += 1
            yield (number + self.base) % 12

    def state_dict(self) -> dict[str, int]:
        return {"base": self.base}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.base = state["base"]


@pytest.mark.parametrize("kind", [Endless, Remembering])
def test_samplers_without_an_end(kind: type[Any]) -> None:
    """A sampler is read as far as it is needed, the same on ranks, and a state goes on in it."""
    sampler = kind()
    data = loader(Noisy(), sampler=sampler)
    expected = list(itertools.islice(data, 30))
    assert sampler.given == 120
    assert len({draw for batch in expected for _, draw in batch}) == 120
    data = loader(Noisy(), sampler=kind(), num_workers=1)
    assert list(itertools.islice(data, 13)) == expected[:13]
    other = loader(Noisy(), sampler=kind())
    other.load_state_dict(data.state_dict())
    random.seed(3)
    assert list(itertools.islice(other, 17)) == expected[13:]
    ranks = zip(*run_ranks(some_of, kind, 5), strict=True)
    assert [sorted(one + two) for one, two in ranks] == [sorted(b) for b in expected[:5]]
    collated: Any = DataLoader(Noisy(), 4, sampler=kind())  # the sizes are known before
    windows = [w.weight for _, w in itertools.islice(accumulate(collated, nn.Identity(), 4), 8)]
    assert windows == [0.25] * 8


def some_of(kind: type[Any], count: int) -> list[Any]:
    return list(itertools.islice(loader(Noisy(), sampler=kind(), batch_size=2), count))


def test_positions_that_a_sampler_does_not_have() -> None:
    """Going on beyond the end of what a sampler yields is an error with both numbers."""
    data = loader(Noisy(), sampler=Often())
    data.load_state_dict({**data.state_dict(), "position": 37})
    with pytest.raises(ValueError, match="position 37, but the sampler yields only 36 samples"):
        next(iter(data))
    sampler = WeightedRandomSampler([1.0] * 12, 48)
    data = loader(Noisy(), sampler=sampler)
    data.load_state_dict({**data.state_dict(), "position": 40})
    assert len([sample for batch in data for sample in batch]) == 8
    with pytest.raises(TypeError, match="len"):
        len(loader(Noisy(), sampler=Often()))


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_that_are_read_at_once(workers: int) -> None:
    """`__getitems__` is called where a dataset has it, and its draws depend on the batch alone."""
    data: Any = Subset(Batched(), list(range(12)))
    expected = of(Batched())
    assert [told for *_, told in expected] == ["of a batch"] * 12
    assert len({draw for _, draw, _ in expected}) == 12
    assert of(data, num_workers=workers) == expected
    assert of(OnlyBatched(), num_workers=workers) == list(range(12))


def test_what_only_passes_on_is_read_one_by_one() -> None:
    """Samples of subsets, stacks and sums draw by their index, whatever the batch."""
    stack: Any = StackDataset(Noisy())
    kinds: list[Any] = [Subset(Noisy(), range(12)), ConcatDataset([Noisy()]), Subset(stack, [1])]
    for data in kinds:
        assert of(data) == of(data, batch_size=3)


def test_batches_of_another_number() -> None:
    """A `__getitems__` that leaves samples out is an error where samples are counted."""

    class Short(Noisy):
        def __getitems__(self, indices: list[int]) -> list[int]:
            return indices[1:]

    with pytest.raises(ValueError, match=r"Short.__getitems__ returned 3 samples for 4 indices"):
        list(DataLoader(Short(), 4))
    assert of(Short()) == [1, 2, 3, 5, 6, 7, 9, 10, 11]  # a collate_fn of one's own may do so


class Stops(Noisy):
    def __init__(self, way: str) -> None:
        self.way = way

    def __getitem__(self, index: int) -> int:
        return next(iter([])) if index == 5 and self.way == "sample" else index


class StopsBatches(Stops):
    def __getitems__(self, indices: list[int]) -> list[int]:
        return next(iter([])) if 5 in indices else indices


def stop(samples: list[int]) -> list[int]:
    return next(iter([])) if 5 in samples else samples


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stop_iteration_ends_no_epoch(workers: int) -> None:
    """A StopIteration out of a sample, a batch or a collate_fn is an error that says where."""
    with pytest.raises(RuntimeError, match=r"dataset\[5\] raised StopIteration"):
        of(Stops("sample"), num_workers=workers)
    with pytest.raises(RuntimeError, match=r"__getitems__\(\[4, 5, 6, 7\]\) raised StopIteration"):
        of(StopsBatches("batch"), num_workers=workers)
    with pytest.raises(RuntimeError, match="collate_fn raised StopIteration"):
        of(Stops("collate"), num_workers=workers, collate_fn=stop)


class Parsed(IterableDataset[int]):
    """What a class yields ends when that says so, whatever calls lie between."""

    def __iter__(self) -> Iterator[int]:
        return map(Stops("sample").__getitem__, filter(lambda item: item < 8, Counter(10)))


class Counter:
    def __init__(self, end: int) -> None:
        self.at, self.end = -1, end

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.at += 1
        return self.at if self.at < self.end else self.stop()

    def stop(self) -> int:
        raise StopIteration


def test_a_stop_iteration_ends_no_stream() -> None:
    """A StopIteration out of a transform is an error; that of an iterator is the end."""
    items = iter(DataLoader(Parsed(), batch_size=None))
    assert list(itertools.islice(items, 5)) == [0, 1, 2, 3, 4]
    with pytest.raises(RuntimeError, match="__getitem__, which makes the items of Parsed, raised"):
        next(items)
    assert list(items) == [6, 7]


# ---------------------------------------------------------------- several loaders


def order(data: DataLoader[Any]) -> list[int]:
    return [index for batch in data for index, _ in batch]


def unseeded(**options: Any) -> DataLoader[Any]:
    return loader(Noisy(), **{"seed": None, **options})


def several(alone: bool) -> Any:
    """Two shuffled loaders, between which one rank may make others."""
    seed_all(7)
    first = unseeded(shuffle=True)
    if alone and distributed.rank() == 0:
        unseeded(), unseeded(shuffle=True, seed=3)
    second = unseeded(shuffle=True)
    return order(first), order(second)


def test_two_loaders_differ() -> None:
    """For any seed and epoch, no two loaders over one dataset have the same order or draws."""
    for seed in range(10):
        seed_all(seed)
        loaders = [unseeded(shuffle=True, batch_size=12) for _ in range(4)]
        batches = [batch for data in loaders for _ in range(3) for batch in data]
        assert len({tuple(index for index, _ in batch) for batch in batches}) == 12
        assert len({draw for batch in batches for _, draw in batch}) == 12 * 12
        seed_all(seed)  # made again in the same order they repeat themselves
        again = [unseeded(shuffle=True, batch_size=12) for _ in range(4)]
        assert [batch for data in again for _ in range(3) for batch in data] == batches
        alone = loader(Noisy(), seed=seed, shuffle=True, batch_size=12)
        assert list(alone) == batches[:1]  # the first has the seed itself
    streams = [list(unseeded_stream()) for _ in range(2)]
    assert streams[0] != streams[1]


class Draws(IterableDataset[float]):
    def __iter__(self) -> Iterator[float]:
        return (random.random() for _ in range(3))


def unseeded_stream() -> DataLoader[Any]:
    return DataLoader(Draws(), collate_fn=as_it_is)


def test_a_loader_goes_on_as_the_one_it_was() -> None:
    """A state brings the order of its loader along, however many were made before."""
    seed_all(7)
    unseeded(shuffle=True)
    data, stream = unseeded(shuffle=True), [unseeded_stream(), unseeded_stream()][1]
    states = data.state_dict(), stream.state_dict()
    seed_all(7)
    other, other_stream = unseeded(shuffle=True), unseeded_stream()
    other.load_state_dict(states[0])
    other_stream.load_state_dict(states[1])
    assert (order(other), list(other_stream)) == (order(data), list(stream))


def test_ranks_have_the_same_order() -> None:
    """A validation loader, or one with a seed, that one rank alone makes changes no order."""
    ranks = run_ranks(several, True)
    together = [[*one, *other] for one, other in zip(*ranks, strict=True)]
    assert [sorted(samples) for samples in together] == [list(range(12))] * 2
    assert ranks[0][0] != ranks[0][1]


class Buckets:
    """Batches in an order of their own: `way` is how the sampler makes it."""

    def __init__(self, way: str, data: Any) -> None:
        self.way, self.data, self.epoch = way, data, 0
        self.batches = [[2 * number, 2 * number + 1] for number in range(6)]

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[list[int]]:
        self.epoch += 1
        batches = self.batches
        if self.way == "a copy":
            batches = self.shuffled = random.sample(batches, 6)
        elif self.way == "in place":
            random.shuffle(batches)
        else:
            batches = batches[self.epoch % 6 :] + batches[: self.epoch % 6]
        yield from batches


class Numbered(Buckets):
    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def epochs(data: DataLoader[Any]) -> list[Any]:
    return [[number for batch in data for number, _ in batch] for _ in range(3)]


@pytest.mark.parametrize("kind", [Buckets, Numbered])
@pytest.mark.parametrize("way", ["a copy", "in place", "by its own count"])
def test_samplers_that_change_themselves(kind: type[Buckets], way: str) -> None:
    """A warning names a sampler whose order depends on its earlier passes, and only such a one."""
    data = Noisy()
    first, later = (loader(data, batch_size=1, batch_sampler=kind(way, data)) for _ in range(2))
    later.set_epoch(2)
    wrong = way == "in place" or (way == "by its own count" and kind is Buckets)
    if wrong:
        with pytest.warns(
            UserWarning, match=f"{kind.__name__} changes itself when it is read, so its order"
        ):
            order = epochs(first)[2]
    else:
        order = epochs(first)[2]
    assert ([number for batch in later for number, _ in batch] == order) != wrong


def test_samplers_without_a_copy() -> None:
    """A sampler that cannot be copied, such as one with a lock, is read as before."""
    sampler: Any = Buckets("in place", threading.Lock())
    assert len(epochs(loader(Noisy(), batch_size=1, batch_sampler=sampler))) == 3


@pytest.mark.parametrize(
    "large",
    [np.broadcast_to(np.zeros(1), (2**22,)), torch.zeros(2**25, dtype=torch.uint8), ["a"] * 2**22],
)
def test_large_samplers_are_not_copied(large: Any) -> None:
    """A sampler with a large array, such as a memmap, a tensor or a list is read without a copy."""
    data = loader(Noisy(), batch_size=1, batch_sampler=Buckets("a copy", large))
    tracemalloc.start()
    try:
        assert len(next(iter(data))) == 2
        assert tracemalloc.get_traced_memory()[1] < 16e6
    finally:
        tracemalloc.stop()
