"""The order of an epoch, what its samples draw, and how a loader goes on."""

from __future__ import annotations

import copy
import gc
import itertools
import math
import multiprocessing
import pickle
import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from math import factorial
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from scipy.stats import chisquare
from sweeps import sweep
from torch.utils.data import (
    BatchSampler,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from batteries import accumulate, distributed, make_checkpoint, seed_all
from batteries.data import DataLoader, Shuffle

Draws = tuple[int, float, float, float]


class Noisy(Dataset[Draws]):
    """Samples that draw from every generator."""

    def __init__(self, length: int = 37) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Draws:
        return index, random.random(), float(np.random.rand()), float(torch.rand(()))


def as_it_is(samples: list[Any]) -> list[Any]:
    return samples


def loader(length: int = 37, batch_size: int | None = 4, **options: Any) -> DataLoader[Any]:
    options = {"shuffle": True, "seed": 3, "collate_fn": as_it_is, **options}
    return DataLoader(Noisy(length), batch_size, **options)


def passes(data: DataLoader[Any], epochs: int = 2) -> list[Any]:
    """Each batch, and what the loop draws after it."""
    return [
        (batch, random.random(), float(np.random.rand()), float(torch.rand(())), data.indices)
        for _ in range(epochs)
        for batch in data
    ]


# ---------------------------------------------------------------- the shuffle


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 10, 63, 64, 65, 1000, 65_537])
def test_shuffle_is_a_permutation(length: int) -> None:
    """Every index stands at exactly one position, for every length and key."""
    for key in range(5):
        order = Shuffle(length, (key, 0))(np.arange(length))
        assert sorted(order.tolist()) == list(range(length))


@pytest.mark.parametrize("length", [2, sweep(3), 4, sweep(5)])
def test_all_orders_are_equally_frequent(length: int) -> None:
    """Over many keys each order of a few elements comes up as often as any other."""
    positions = np.arange(length)
    orders = Counter(tuple(Shuffle(length, (key, 1))(positions).tolist()) for key in range(3000))
    counts = list(orders.values()) + [0] * (factorial(length) - len(orders))
    assert chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("length", [50, sweep(1000)])
def test_positions_and_neighbours_are_uniform(length: int) -> None:
    """Each position gets each part of the indices, and neighbours differ by any step."""
    firsts, steps = [], []
    for key in range(3000):
        order = Shuffle(length, (key, 2))(np.array([0, 1, length - 1]))
        firsts.append(order[[0, 2]] * 10 // length)
        steps.append((order[1] - order[0]) % length * 10 // length)
    for seen in (*np.array(firsts).T, np.array(steps)):
        counts = np.bincount(seen, minlength=10)
        expected = np.bincount(np.arange(length) * 10 // length, minlength=10) / length * 3000
        assert chisquare(counts, expected).pvalue > 1e-4


@pytest.mark.parametrize("shape", [(), (6,), (0,), (2, 3)])
def test_positions_of_any_shape(shape: tuple[int, ...]) -> None:
    """The numbers come in the shape of the positions, also for a single position."""
    order = Shuffle(7, (42,))
    positions = np.arange(7)[: math.prod(shape)].reshape(shape)
    assert order(positions).shape == shape
    assert (order(positions) == order(np.arange(7))[positions]).all()


def test_positions_of_any_type() -> None:
    """Positions may be a list, a range or a tensor; a fraction is not rounded."""
    order = Shuffle(7, (42,))
    for positions in ([1, 2], range(1, 3), torch.tensor([1, 2]), np.array([1, 2], np.uint8)):
        assert order(positions).tolist() == order(np.array([1, 2])).tolist()
    for wrong in ([1.5], ["1"], [True]):
        with pytest.raises(TypeError, match=r"positions are .*; expected integers"):
            order(wrong)


class Huge(Dataset[int]):
    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, index: int) -> int:
        return index


def test_huge_epochs_take_no_memory() -> None:
    """An epoch over 10**9 samples starts, in its middle too, without a list of them."""
    data = DataLoader(Huge(), batch_size=64, shuffle=True, seed=1)
    tracemalloc.start()
    next(iter(data))
    data.load_state_dict({**data.state_dict(), "position": 64 * 10**7})
    next(iter(data))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10e6


# ---------------------------------------------------------------- functions of the seed


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_change_nothing(workers: int, persistent: bool) -> None:
    """Batches, what samples draw and what the loop draws are the same with any workers."""
    options = {"num_workers": workers, "persistent_workers": persistent}
    assert passes(loader(**options)) == passes(loader())


def test_history_changes_nothing() -> None:
    """What was drawn before, or in another epoch, changes no batch."""
    expected = passes(loader())
    torch.rand(7)
    data = loader()
    data.set_epoch(1)
    assert passes(data, 1) == expected[10:]


def test_epochs_and_seeds_differ() -> None:
    """Each epoch and each seed has its own order, draws and loop draws."""
    batches = [*passes(loader()), *passes(loader(seed=4))]
    draws = [sample[1:] for batch, *_ in batches for sample in batch]
    assert len({draw for sample in draws for draw in sample}) == 3 * len(draws)
    assert len({drawn for _, *loop, _ in batches for drawn in loop}) == 3 * len(batches)
    orders = [[s[0] for batch, *_ in batches[i : i + 10] for s in batch] for i in (0, 10, 20, 30)]
    assert len(set(map(tuple, orders))) == 4
    assert all(sorted(order) == list(range(37)) for order in orders)


def test_the_seed_of_seed_all() -> None:
    """The loader takes the seed last given to `seed_all`, not a rank's."""
    seed_all(7)
    seed_all(8, rank=1)
    assert loader(seed=None).seed == 7


def rank_passes(lengths: list[int], batch_size: int, options: dict[str, Any]) -> list[Any]:
    return [passes(loader(length, batch_size, **options), 1) for length in lengths]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_each_step(world_size: int) -> None:
    """With the same global batch, a step has the same samples, drawing alike, on any ranks."""
    lengths = [35, 36, 37, 49]
    results = run_ranks(rank_passes, lengths, 6 // world_size, {}, world_size=world_size)
    for whole, ranks in zip(rank_passes(lengths, 6, {}), zip(*results, strict=True), strict=True):
        assert {len(batches) for batches in ranks} == {len(whole)}  # in step
        for step, (batch, *_) in enumerate(whole):
            together = [sample for batches in ranks for sample in batches[step][0]]
            repeated = max(0, world_size - len(batch))
            assert len(together) == len(batch) + repeated
            assert set(together) == set(batch)
            assert len({batches[step][1] for batches in ranks}) == world_size  # drawing apart


@pytest.mark.parametrize("world_size", [2, 3])
def test_evaluation_sees_each_sample_once(world_size: int) -> None:
    """Unshuffled, nothing is repeated and nothing left out, though a rank may have nothing."""
    lengths = [1, 2, 12, 13, 25]
    results = run_ranks(rank_passes, lengths, 2, {"shuffle": False}, world_size=world_size)
    for length, ranks in zip(lengths, zip(*results, strict=True), strict=True):
        seen = [sample[0] for batches in ranks for batch, *_ in batches for sample in batch]
        assert sorted(seen) == list(range(length))


def lengths_are_right() -> bool:
    kinds: list[dict[str, Any]] = [{}, {"shuffle": False}, {"drop_last": True}]
    return all(
        len(loader(length, 3, **kind)) == len(passes(loader(length, 3, **kind), 1))
        for kind in kinds
        for length in (1, 5, 6, 7, 12)
    )


def test_len() -> None:
    """`len` is the number of batches that this rank gets."""
    assert lengths_are_right()
    assert run_ranks(lengths_are_right) == [True, True]


def divided_twice() -> list[Any]:
    told: list[Any] = []
    data: Any = range(8)
    sampler: Any = DistributedSampler(data, shuffle=False)
    for own in ({"sampler": sampler}, {"batch_sampler": BatchSampler(sampler, 2, False)}):
        try:
            told.append(list(DataLoader(data, **own)))
        except ValueError as error:
            told.append(str(error))
    whole: Any = SequentialSampler(data)
    whole.num_replicas = 2  # it knows the ranks, but has all samples
    assert len([*DataLoader(data, 2, sampler=whole)]) == 2
    alone: Any = DistributedSampler(data, num_replicas=1, rank=0, shuffle=False)
    return [
        *told,
        [int(each) for batch in DataLoader(data, 2, sampler=alone) for each in batch],
    ]


def test_a_sampler_that_divides_the_samples() -> None:
    """A sampler that gives each rank its part is refused: parts of the parts would be lost."""
    for *told, rest in run_ranks(divided_twice):
        for text in told:
            assert "DistributedSampler divides the samples among 2 ranks, and the loader" in text
        assert len(rest) == 4
    data: Any = range(8)
    sampler: Any = DistributedSampler(data, num_replicas=2, rank=1, shuffle=False)
    assert [int(each) for each in DataLoader(data, sampler=sampler)] == [1, 3, 5, 7]


def test_drop_last() -> None:
    """With `drop_last` every batch is whole."""
    assert [len(batch) for batch, *_ in passes(loader(drop_last=True), 1)] == [4] * 9


@pytest.mark.parametrize("batches", [2, 99], ids=["in a pass", "after a pass"])
@pytest.mark.parametrize("dataset", ["samples", "stream"])
def test_dropped_with_persistent_workers(dataset: str, batches: int) -> None:
    """Persistent workers end when their loader is dropped; no garbage collection is needed."""
    kinds: dict[str, Any] = {"samples": Noisy(37), "stream": Lines()}
    options: dict[str, Any] = {"num_workers": 1, "persistent_workers": True}
    data: DataLoader[Any] = DataLoader(kinds[dataset], 4, **options)
    gc.collect()
    gc.disable()
    others = set(multiprocessing.active_children())
    assert len(list(itertools.islice(data, batches))) in (2, 5, 10)
    [worker] = set(multiprocessing.active_children()) - others
    del data
    gc.enable()
    assert worker.exitcode == 0


@pytest.mark.parametrize("dataset", ["samples", "stream"])
@pytest.mark.parametrize("persistent", [False, True])
def test_freed_in_a_cycle(dataset: str, persistent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers end at once when the garbage collector frees their pass in a cycle of references."""
    # the seconds after which torch gives up on workers that do not learn of the end
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 1000.0)
    gc.disable()
    others = set(multiprocessing.active_children())
    options: dict[str, Any] = {"num_workers": 1, "persistent_workers": persistent}
    data: Any = DataLoader(Noisy(37) if dataset == "samples" else Lines(), 4, **options)
    cycle: list[Any] = [iter(data)]
    cycle.append(cycle)
    next(cycle[0])
    [worker] = set(multiprocessing.active_children()) - others
    del cycle, data
    gc.collect()
    gc.enable()
    assert worker.exitcode == 0


def test_single_samples() -> None:
    """`batch_size=None` yields samples."""
    data = loader(batch_size=None, collate_fn=None)
    assert sorted(int(sample[0]) for sample in data) == list(range(37))


# ---------------------------------------------------------------- going on


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_anywhere(workers: int) -> None:
    """From the state after any batch, another loader yields the rest, draw for draw."""
    expected = passes(loader())
    for done in range(0, 21, 3):
        first = loader(num_workers=workers)
        seen = 0
        while seen < done:
            for _ in first:
                seen += 1
                if seen == done:
                    break
        state = first.state_dict()
        second = loader(num_workers=2 - workers)
        second.load_state_dict(state)
        rest = passes(second, 2 - state["epoch"])
        assert rest == expected[done:]


def resumed(state: dict[str, Any], batch_size: int) -> list[Any]:
    data = loader(50, batch_size)
    data.load_state_dict(state)
    return passes(data, 1)


@pytest.mark.parametrize("batch_size", [3])
def test_resume_on_other_ranks(batch_size: int) -> None:
    """On another number of ranks, with another batch size, the rest of the epoch comes once."""
    data = loader(50, 4)
    batches = iter(data)
    seen = [sample for _ in range(4) for sample in next(batches)]
    ranks = run_ranks(resumed, data.state_dict(), batch_size, world_size=2)
    rest = [sample for batches in ranks for batch, *_ in batches for sample in batch]
    assert sorted(seen + rest) == sorted(s for batch, *_ in passes(loader(50), 1) for s in batch)


def draws_after_passes(validate: bool, done: int = 0) -> list[tuple[float, float, float]]:
    """The numbers that a program draws between its epochs; with `done`, it has been resumed."""
    seed_all(1)
    rows: Any = range(8)
    train, valid = DataLoader(rows, batch_size=4, shuffle=True), DataLoader(rows, batch_size=4)
    train.load_state_dict({**train.state_dict(), "epoch": done})
    drawn = []
    while train.epoch < 3:
        for _ in train:
            torch.rand(2)
        if validate:
            valid.set_epoch(0)
        for _ in valid if validate else ():
            random.random(), np.random.rand(), torch.rand(2)
        drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))
    return drawn


def test_random_numbers_after_a_validation() -> None:
    """A pass over a loader in order, which no checkpoint has, changes no later random number."""
    alone = draws_after_passes(validate=False)
    assert draws_after_passes(validate=True) == alone
    assert draws_after_passes(validate=True, done=1) == alone[1:]
    assert len({*alone}) == 3


def test_a_loader_for_each_round() -> None:
    """A loader that a loop makes again after a checkpoint has another seed in a resumed run."""
    rows: Any = range(4)

    def rounds(**options: Any) -> None:
        for _ in range(2):
            DataLoader(rows, shuffle=True, **options)
            make_checkpoint("train", 1, torch.nn.Linear(1, 1))

    rounds(seed=3)
    with pytest.warns(UserWarning, match=r"test_data.py:\d+ makes a loader again.* pass seed="):
        rounds()
    for seed in range(2):
        seed_all(seed)
        DataLoader(rows, shuffle=True)
        make_checkpoint("train", 1, torch.nn.Linear(1, 1))


def test_a_pass_that_is_broken_off() -> None:
    """The next pass begins where that one began, as torch's does; a resumed one too."""
    data = loader()
    expected = passes(loader(), 1)
    next(iter(data))
    assert data.state_dict()["position"] == 4
    assert passes(data, 1) == expected
    data = loader()
    data.load_state_dict({**data.state_dict(), "position": 8})
    next(iter(data))
    assert passes(data, 1) == expected[2:]


def test_at_the_end_of_an_epoch() -> None:
    """A state from the body of the last batch has nothing left; after it comes the next epoch."""
    data = loader()
    for _ in data:
        state = data.state_dict()
    assert state["epoch"] == 0
    other = loader()
    other.load_state_dict(state)
    assert passes(other, 2) == passes(loader(), 2)[10:]


@pytest.mark.parametrize(
    ("other", "name"),
    [({"length": 36}, "length"), ({"seed": 4}, "seed"), ({"shuffle": False}, "order")],
)
def test_another_loader(other: dict[str, Any], name: str) -> None:
    """The state of a loader of another length, seed or order is refused, with both values."""
    data = loader()
    with pytest.raises(ValueError, match=rf"a loader with {name} .*, and this one has"):
        data.load_state_dict(loader(**other).state_dict())
    assert data.state_dict() == loader().state_dict()


def test_loading_in_a_pass() -> None:
    """A state loaded inside the loop is an error: the batches under way are from before it."""
    data = loader()
    batches = iter(data)
    next(batches)
    with pytest.raises(RuntimeError, match="load its state before the loop"):
        data.load_state_dict(loader().state_dict())


def test_loading_twice() -> None:
    """A loader resumed twice is where the last state says, not twice as far."""
    data, state = loader(), {**loader().state_dict(), "position": 8}
    for _ in range(2):
        data.load_state_dict(state)
    assert passes(data, 1) == passes(loader(), 1)[2:]


def test_another_kind_of_loader() -> None:
    """The state of a stream is refused by a loader of samples, and the other way round."""
    with pytest.raises(ValueError, match="a loader with length None, and this one has 37"):
        loader().load_state_dict(DataLoader(Lines(), seed=3).state_dict())
    with pytest.raises(ValueError, match="a loader with length 37, and this one has None"):
        DataLoader(Lines(), seed=3).load_state_dict(loader().state_dict())


def test_positions_out_of_range() -> None:
    """A position that the epoch does not have is refused."""
    with pytest.raises(ValueError, match="position is 38; expected 0 to 37"):
        loader().load_state_dict({**loader().state_dict(), "position": 38})
    data = loader(batches_per_pass=2)
    with pytest.raises(ValueError, match="done is 3; expected 0 to 2"):  # it would never end
        data.load_state_dict({**data.state_dict(), "done": 3})


def test_what_is_no_sampler() -> None:
    """A number in place of a sampler, or indices in place of their lists, are named."""
    with pytest.raises(TypeError, match="the sampler is 3; expected indices, or lists of them"):
        loader(shuffle=None, sampler=3)
    with pytest.raises(TypeError, match="batch_sampler yields 0; expected lists of indices"):
        list(loader(batch_size=1, shuffle=None, batch_sampler=[0, 1]))


def test_a_number_of_workers_as_text() -> None:
    """A number that an argument parser has left as a text is named."""
    with pytest.raises(TypeError, match="num_workers is '2'; expected a whole number"):
        loader(num_workers="2")


@pytest.mark.parametrize("length", [None, "sampler"])
def test_without_a_length(length: str | None) -> None:
    """The error names the object that has no length, and says what to do."""

    class Bare:
        def __iter__(self) -> Iterator[int]:
            return iter([0])

    bare: Any = Bare()
    data = loader(shuffle=None, sampler=bare) if length else DataLoader(bare)
    remedy = r"give it __len__$" if length else "or make it a torch.utils.data.IterableDataset"
    with pytest.raises(TypeError, match=f"Bare has no length: .*{remedy}"):
        len(data)


@pytest.mark.parametrize("kind", ["samples", "stream", "sampler"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))])
def test_copies_of_a_loader(kind: str, copied: Any) -> None:
    """A copy of a loader, also of one in a pass, begins where the loader would begin again."""
    data = {
        "samples": lambda: loader(),
        "stream": lambda: DataLoader(Lines(), seed=3, num_workers=1),
        "sampler": lambda: loader(shuffle=None, sampler=[3, 1, 2]),
    }[kind]()
    list(data)
    begun = iter(data)
    first = next(begun)
    found = [str(batch) for batch in copied(data)]
    assert found == [str(batch) for batch in (first, *begun)]


# ---------------------------------------------------------------- other samplers and streams


def sampled(kind: str) -> DataLoader[Any]:
    if kind == "batches":
        batches = [[0, 1], [2], [3, 4, 5], [6]]
        return loader(batch_size=1, shuffle=None, batch_sampler=batches)
    if kind == "own generator":
        own = RandomSampler(range(37), generator=torch.Generator())
        return loader(shuffle=None, sampler=own)
    weights = WeightedRandomSampler(torch.arange(37.0).tolist(), 30)
    return loader(shuffle=None, sampler=weights)


def sampled_passes(kind: str) -> list[Any]:
    return passes(sampled(kind))


@pytest.mark.parametrize("kind", ["batches", "own generator", "weights"])
def test_samplers_of_the_user(kind: str) -> None:
    """Their order too is a function of seed and epoch, shared by the ranks, and resumed."""
    expected = sampled_passes(kind)
    torch.rand(3)
    assert sampled_passes(kind) == expected
    data = sampled(kind)
    batches = iter(data)
    next(batches), next(batches)
    other = sampled(kind)
    other.load_state_dict(data.state_dict())
    assert passes(other, 1) == expected[2 : len(expected) // 2]
    ranks = run_ranks(sampled_passes, kind)
    assert len(ranks[0]) == len(ranks[1])
    seen = {sample for batches in ranks for batch, *_ in batches for sample in batch}
    assert seen == {sample for batch, *_ in expected for sample in batch}


class Lines(IterableDataset[Any]):
    """Twenty items in an order of its own, with draws."""

    def __iter__(self) -> Iterator[Any]:
        for item in torch.randperm(20).tolist():
            yield item, random.random()


class Remembering(Lines):
    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[Any]:
        while self.at < 20:
            self.at += 1
            yield self.at, random.random()
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def stream_passes(workers: int) -> list[Any]:
    options: dict[str, Any] = {"collate_fn": as_it_is, "num_workers": workers, "sharded": False}
    data = DataLoader(Lines(), 3, seed=3, **options)
    return [[item for batch in data for item in batch] for _ in range(2)]


class Counted(Lines):
    """Lines whose number is known."""

    def __len__(self) -> int:
        return 20


def stream_lengths() -> bool:
    found = (
        DataLoader(Counted(), 3, sharded=sharded, drop_last=drop_last)
        for sharded in (False, True)
        for drop_last in (False, True)
    )
    return all(len(data) == len([*data]) for data in found)


@pytest.mark.parametrize("world_size", [1, 3])
def test_lengths_of_streams(world_size: int) -> None:
    """The length of a loader over an iterable dataset is that of this rank's part."""
    assert run_ranks(stream_lengths, world_size=world_size) == [True] * world_size


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2])
def test_streams_are_divided(workers: int, world_size: int) -> None:
    """Each item of an iterable dataset comes once, drawing alike, anew in each epoch."""
    expected = stream_passes(0)
    ranks = run_ranks(stream_passes, workers, world_size=world_size)
    for epoch in range(2):
        seen = [item for passed in ranks for item in passed[epoch]]
        assert sorted(seen) == sorted(expected[epoch])
    assert sorted(expected[0]) != sorted(expected[1])


def remembering(workers: int, persistent: bool = False, **options: Any) -> DataLoader[Any]:
    return DataLoader(
        Remembering(), 3, seed=3, collate_fn=as_it_is, num_workers=workers,
        persistent_workers=persistent, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("workers", "persistent"), [(0, False), sweep(1, False), sweep(3, False), (3, True)]
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_streams_that_remember_go_on(workers: int, persistent: bool) -> None:
    """A stream goes on after any batch, though workers had read on, and the next epoch is whole."""
    expected = passes(remembering(workers))
    half = len(expected) // 2
    for done in (1, half) if workers else (1, 2, 4, half):
        first = iter(data := remembering(workers))
        for _ in range(done):
            next(first)
        state = data.state_dict()
        other = remembering(workers, persistent)
        next(iter(other))  # workers that are there already
        other.load_state_dict(state)
        assert passes(other) == expected[done:]


def stream_on_ranks(state: dict[str, Any] | None) -> Any:
    data = remembering(0, sharded=False)
    part = distributed.PerRank(data)
    if state is not None:
        part.load_state_dict(state)
        return [item for batch in data for item in batch]
    batches = iter(data)
    seen = [*next(batches), *next(batches)]
    return seen, part.state_dict(), data.state_dict()


def test_streams_on_ranks_go_on() -> None:
    """Each rank goes on at its own place; another rank's state is refused, as it is elsewhere."""
    ranks = run_ranks(stream_on_ranks, None)
    rests = run_ranks(stream_on_ranks, ranks[0][1])
    items = [item for seen, *_ in ranks for item in seen] + [i for rest in rests for i in rest]
    assert sorted(item[0] for item in items) == list(range(1, 21))
    with pytest.raises(ValueError, match=r"rank 1 of 2, and this is rank 0 of 1.*PerRank"):
        remembering(0).load_state_dict(ranks[1][2])


def test_streams_in_a_window() -> None:
    """The state inside a window of batches that were fetched together is that before it."""
    expected = passes(remembering(0), 1)
    data = remembering(0)
    pairs = iter(accumulate(data, torch.nn.Identity(), 3, count=len))
    for _ in range(4):
        next(pairs)
    other = remembering(0)
    other.load_state_dict(data.state_dict())
    assert passes(other, 1) == expected[3:]


def test_streams_that_forget() -> None:
    """Without a memory, or with other workers, it says why it cannot go on in an epoch."""
    state = {**DataLoader(Lines(), seed=3).state_dict(), "position": 2}
    with pytest.raises(ValueError, match="Lines has no load_state_dict"):
        DataLoader(Lines(), seed=3).load_state_dict(state)
    with pytest.raises(ValueError, match=r"was read by 1 workers .*, and there are 2"):
        DataLoader(Remembering(), seed=3, num_workers=2).load_state_dict(state)
    other = {**state, "workers": [{"worker": 1, "items": 2, "ended": False}]}
    with pytest.raises(ValueError, match=r"the state has workers \[1\]; expected 0 to 0"):
        DataLoader(Remembering(), seed=3).load_state_dict(other)
    DataLoader(Lines(), seed=3).load_state_dict({**state, "position": 0, "epoch": 3})


def test_it_is_a_torch_loader() -> None:
    """Its attributes are those that torch's has."""
    data = DataLoader(TensorDataset(torch.arange(6)), 2, shuffle=True)
    assert isinstance(data, torch.utils.data.DataLoader)
    assert (data.batch_size, len(data.dataset), data.num_workers) == (2, 6, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="in_order"):
        DataLoader(Noisy(), in_order=False)
    with pytest.warns(UserWarning, match="does not use generator.* pass seed="):
        DataLoader(Noisy(), shuffle=True, generator=torch.Generator())
    assert distributed.world_size() == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_profiler_sees_the_batches(workers: int) -> None:
    """A profiler that starts in the middle of a pass counts the batches from there on."""
    batches = iter(DataLoader(Noisy(12), 4, num_workers=workers))
    next(batches)
    with torch.autograd.profiler.profile() as profile:
        assert len(list(batches)) == 2
    told = {event.key: event.count for event in profile.key_averages()}
    [count] = [told[name] for name in told if name.startswith("enumerate(DataLoader)")]
    assert count == 3  # with the attempt that found the end


def test_accelerate_may_not_prepare_it() -> None:
    """The question that accelerate asks before it makes a plain loader is an error with advice."""
    with pytest.raises(TypeError, match=r"out of accelerator.prepare\(\).*to_device\(batch, acc"):
        getattr(DataLoader(Noisy(4)), "_is_accelerate_prepared", False)


def read_differently(what: str) -> list[int]:
    rank, numbers = distributed.rank(), range(12)
    data: Any = range(12 + rank) if what == "length" else numbers
    seed_all(42 + rank if what == "seed" else 42)
    if what == "loaders" and rank == 0:
        DataLoader[int](data, shuffle=True)
    shuffled: DataLoader[Any] = DataLoader(data, batch_size=3, shuffle=what != "length")
    if rank == 0:  # a look at some samples
        next(iter(shuffled))
    passes = [[i for batch in shuffled for i in batch.tolist()] for _ in range(2)]
    return distributed.all_gather(passes)[0][0]


@pytest.mark.parametrize("what", ["seed", "loaders", "length"])
def test_ranks_with_different_loaders(what: str) -> None:
    """Ranks that would divide other samples, or another order of them, do not train."""
    ranks = run_ranks(read_differently, what)
    for error in ranks:
        assert "the loader made at test_data.py:" in str(error)
        assert "is not the same on all ranks: " in str(error)
    assert run_ranks(read_differently, "nothing")[0] == run_ranks(read_differently, "nothing")[1]


@pytest.mark.parametrize("shuffle", [True, False, None])
def test_loaders_that_others_make_of_one(shuffle: bool | None) -> None:
    """A loader made of another one's parts, which would have another order or place, says so."""
    data: Any = range(10)
    sampler: Any = RandomSampler(data) if shuffle is None else None
    own: DataLoader[Any] = DataLoader(data, 2, shuffle, sampler)
    parts: list[dict[str, Any]] = [{"batch_sampler": own.batch_sampler}]
    parts += [{"sampler": own.sampler, "batch_size": 2}] if sampler is None else []
    for part in parts:
        other: Any = torch.utils.data.DataLoader(data, **part)
        with pytest.raises(TypeError, match="Iterate over the loader itself; to go on in the mid"):
            next(iter(other))
        assert len(other) == len(own)
    assert own.sampler is sampler or isinstance(
        own.sampler, DistributedSampler
    )  # nothing to divide
