"""Datasets with generators of their own, and the check of samples."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from batteries.data import DataLoader

of_the_module = np.random.default_rng(0)


def from_the_module() -> float:
    return float(of_the_module.random())


def through_a_function() -> float:
    return from_the_module()


class Slotted:
    __slots__ = ("rng",)

    def __init__(self) -> None:
        self.rng = random.Random(1)

    def __call__(self) -> float:
        return self.rng.random()


class OfTheClass:
    rng = np.random.RandomState(0)

    def __call__(self) -> float:
        return float(self.rng.rand())


class MadeLate:
    """As many do it for workers: without a seed, when it is first needed."""

    rng: Any = None

    def __call__(self) -> float:
        self.rng = self.rng or np.random.default_rng()
        return float(self.rng.random())


def in_a_closure() -> Callable[[], float]:
    generator = np.random.Generator(np.random.MT19937(0))
    return lambda: float(generator.random())


def of_torch(generator: Any) -> float:
    return float(torch.rand((), generator=generator))


WAYS: dict[str, Callable[[], Callable[[], float]]] = {
    "a method": lambda: random.Random().random,
    "slots": Slotted,
    "a class": OfTheClass,
    "late": MadeLate,
    "a closure": in_a_closure,
    "torch": lambda: partial(of_torch, torch.Generator()),
    "the module": lambda: through_a_function,
}


class Own(Dataset[Any]):
    def __init__(self, draw: Callable[[], Any]) -> None:
        self.transforms = {"noise": [draw]}

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        return {"index": index, "noise": [draw() for draw in self.transforms["noise"]]}


def as_it_is(samples: list[Any]) -> list[Any]:
    return samples


def loader(draw: Callable[[], Any], **options: Any) -> DataLoader[Any]:
    data: Any = Subset(Own(draw), range(12))
    return DataLoader(data, 2, shuffle=True, seed=3, collate_fn=as_it_is, **options)


@pytest.mark.parametrize("way", WAYS)
def test_generators_of_a_dataset(way: str) -> None:
    """What they draw is a function of the sample: with any workers, and after a resume."""
    made = WAYS[way]
    expected = [list(data) for data in [loader(made())] for _ in range(2)]
    draws = [sample["noise"][0] for batches in expected for batch in batches for sample in batch]
    assert len(set(draws)) == 24
    data = loader(made(), num_workers=2)
    assert list(itertools.islice(data, 3)) == expected[0][:3]
    other = loader(made())
    other.load_state_dict(data.state_dict())
    assert list(other) == expected[0][3:]
    other.check()
    data.check()


def test_generators_of_a_collate_fn() -> None:
    """A `collate_fn` that draws from its own generator does so by the samples of its batch."""

    class Mixing:
        def __init__(self) -> None:
            self.rng = np.random.default_rng()

        def __call__(self, samples: list[Any]) -> Any:
            return samples, self.rng.random()

    data: Any = range(6)
    batches = [list(DataLoader(data, 2, collate_fn=Mixing(), seed=3)) for _ in range(2)]
    assert batches[0] == batches[1]


def noisy(samples: list[Any]) -> Any:
    return samples, random.random(), float(torch.rand(()))


def test_draws_of_a_collate_fn() -> None:
    """It draws by the samples of its batch, those of tensors too, with any workers."""
    data = TensorDataset(torch.arange(6))
    options: dict[str, Any] = {"collate_fn": noisy, "seed": 3}
    alone, workers = (list(DataLoader(data, 2, num_workers=n, **options)) for n in (0, 1))
    assert alone == workers


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_keyed_is_told(workers: int) -> None:
    """The check names the samples, the place in them, the remedy, and leaves the loop's draws."""
    data = loader(random.SystemRandom().random, num_workers=workers)
    torch.manual_seed(0)
    with pytest.raises(
        ValueError, match=r"4 of 4 samples differ .* at \['noise'\]\[0\].*\(SystemRandom\)"
    ):
        data.check(4)
    assert torch.initial_seed() == 0
    assert data.state_dict() == loader(int).state_dict()
    steps = itertools.count()
    with pytest.raises(ValueError, match="an earlier sample has changed"):
        loader(lambda: next(steps)).check()


def test_whatever_is_compared() -> None:
    """Samples of tensors with NaN, arrays and objects are compared by what is in them."""

    def sample() -> Any:
        return torch.tensor([torch.nan, 1]), np.array([np.nan]), {"text": object}, ValueError("x")

    loader(sample).check()
    with pytest.raises(ValueError, match=r"\[0\]\[1\]"):
        loader(lambda: ("same", np.frombuffer(random.SystemRandom().randbytes(8)))).check()


def test_streams_are_not_checked() -> None:
    """An iterable dataset cannot be asked again; the error says so."""

    class Numbers(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(3))

    with pytest.raises(TypeError, match="Numbers is iterable; check asks for samples by"):
        DataLoader(Numbers()).check()
