"""Datasets with generators of their own, and the check of samples."""

from __future__ import annotations

import importlib
import itertools
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
)

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


class Lots(list[Any]):
    """A container with attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = random.Random(1)

    def __call__(self) -> float:
        return self.rng.random()


class HeldByTheClass:
    parts = (Slotted(),)

    def __call__(self) -> float:
        return self.parts[0]()


class OfAStaticMethod:
    @staticmethod
    def draw() -> float:
        return of_an_object()

    @property
    def value(self) -> float:
        return self.draw()

    def __call__(self) -> float:
        return self.value


class OfBits:
    def __init__(self) -> None:
        self.bits = np.random.PCG64(0)

    def __call__(self) -> float:
        return float(np.random.Generator(self.bits).random())


an_object = Slotted()


def of_an_object() -> float:
    return [an_object() for _ in range(2)][1]


def of_a_keyword(*, rng: random.Random = random.Random(1)) -> float:  # noqa: B008
    return rng.random()


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
    "a subclass of list": Lots,
    "an object of a class": HeldByTheClass,
    "a static method": OfAStaticMethod,
    "bits": OfBits,
    "a keyword": lambda: of_a_keyword,
    "an object of the module": lambda: of_an_object,
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


def test_generators_of_other_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the user's own modules are found, through their functions and by their names."""
    Path("noises.py").write_text(
        "import random\nrng = random.Random(1)\ndraw = lambda: rng.random()"
    )
    monkeypatch.syspath_prepend(str(Path.cwd()))
    noises = importlib.import_module("noises")
    monkeypatch.delitem(sys.modules, "noises")
    for draw in ("noises.rng.random", "noises.draw"):
        made = eval(f"lambda: {draw}()", {"noises": noises})
        first, second = list(loader(made)), list(loader(made))
        assert first == second


class Shuffling:
    """A sampler with a generator of its own, without a seed."""

    def __init__(self, rng: Any) -> None:
        self.rng = rng

    def __len__(self) -> int:
        return 12

    def __iter__(self) -> Iterator[int]:
        order = list(range(12))
        self.rng.shuffle(order)
        return iter(order)


class ShufflingLate(Shuffling):
    """Its generator is made when the order is first read."""

    def __iter__(self) -> Iterator[int]:
        self.rng = self.rng or np.random.default_rng()
        yield from super().__iter__()


def test_generators_that_a_sampler_makes_late() -> None:
    """They are found after the first read, which then comes again."""

    def orders() -> list[Any]:
        sampler: Any = ShufflingLate(None)
        data: DataLoader[Any] = DataLoader(Own(int), 2, sampler=sampler, seed=3)
        return [[index for batch in data for index in batch["index"].tolist()] for _ in range(2)]

    first, second = orders(), orders()
    assert first == second
    assert first[0] != first[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_generators_of_a_sampler(workers: int) -> None:
    """The order is that of seed and epoch, with any workers, and after a resume."""

    def made(rng: Any, batches: bool = False, number: int = 0) -> DataLoader[Any]:
        options: dict[str, Any] = {"seed": 3, "num_workers": number}
        sampler: Any = Shuffling(rng)
        data: Any = Own(rng.random)
        if not batches:
            return DataLoader(data, 2, sampler=sampler, collate_fn=as_it_is, **options)
        sampler = BatchSampler(RandomSampler(range(12), generator=torch.Generator()), 2, False)
        return DataLoader(data, batch_sampler=sampler, collate_fn=as_it_is, **options)

    for batches in (False, True):
        data = made(random.Random(), batches)
        expected = [list(data) for _ in range(2)]
        assert expected[0] != expected[1]
        first, other = (made(random.Random(), batches, workers) for _ in range(2))
        first.set_epoch(1)
        begun = list(itertools.islice(first, 2))
        other.load_state_dict(first.state_dict())
        assert begun + list(other) == expected[1]


def test_loaders_that_share_their_parts() -> None:
    """A dataset and a sampler of two loaders draw the same if one loader reads between."""

    def made() -> list[DataLoader[Any]]:
        rng = random.Random()
        data, sampler = Own(rng.random), Shuffling(rng)
        options: dict[str, Any] = {"sampler": sampler, "collate_fn": as_it_is}
        return [DataLoader(data, 2, seed=seed, **options) for seed in (3, 4)]

    alone = [list(data) for data in made()]
    assert alone[0] != alone[1]
    assert [list(batches) for batches in zip(*zip(*made(), strict=True), strict=True)] == alone


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


class Answering:
    """It answers to every name, and its answers have no truth, as columns of polars."""

    def __getattr__(self, name: str) -> Any:
        return np.arange(2)  # so is a comparison with it

    def __bool__(self) -> bool:
        return True

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("not now")


rng, column = random.Random(1), None


class BesideOdd(Dataset[Any]):
    def __init__(self) -> None:
        self.odd = [Answering()]

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return index, rng.random(), column and index


def test_odd_objects_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects that raise where one looks at them do no harm, and hide no generator."""
    monkeypatch.setitem(globals(), "column", Answering())
    passes = [list(DataLoader(BesideOdd(), seed=1)) for _ in range(2)]
    assert str(passes[0]) == str(passes[1])


def test_many_datasets_with_their_own_generators() -> None:
    """A concatenation of more datasets than a container is usually looked at has them all keyed."""
    data: Any = ConcatDataset([Own(random.Random().random) for _ in range(120)])
    DataLoader(data, 2, seed=3, collate_fn=as_it_is).check()
    last: Any = Subset(data, range(120 * 12 - 4, 120 * 12))
    DataLoader(last, 2, seed=3, collate_fn=as_it_is).check()


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
