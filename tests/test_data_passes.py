"""Passes of so many batches, which go on where the last one stopped."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch.utils.data import Dataset, IterableDataset, Sampler

from batteries import accumulate
from batteries.data import DataLoader


class Noisy(Dataset[Any]):
    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> Any:
        return index, random.random()


class Lines(IterableDataset[Any]):
    """Items whose memory is where they are; `forgets` has none."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[Any]:
        while self.at < 23:
            self.at += 1
            yield self.at - 1, random.random()
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class Kept(Lines):
    """Its place stays behind the last item until the next pass, as that of a file does."""

    def __init__(self) -> None:
        self.at = self.first = 0

    def __iter__(self) -> Iterator[Any]:
        first, self.first = self.first, 0
        for number in range(first, 23):
            self.at = number + 1
            yield number, random.random()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = self.first = state["at"]


class Forgetful(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return ((number, random.random()) for number in range(23))


def as_it_is(samples: list[Any]) -> list[Any]:
    return samples


def made(kind: type[Any], count: int | None = 4, **options: Any) -> DataLoader[Any]:
    options = {"batch_size": 2, "collate_fn": as_it_is, "seed": 3, **options}
    if kind is Noisy:
        options["shuffle"] = True
    return DataLoader(kind(), batches_per_pass=count, **options)


def passes(data: DataLoader[Any], count: int) -> list[Any]:
    return [[(batch, random.random()) for batch in data] for _ in range(count)]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [Noisy, Lines, Kept, Forgetful])
def test_passes_go_on(kind: type[Any], workers: int) -> None:
    """Passes of 4 batches are the batches of whole epochs, 4 at a time; a state goes on in any."""
    whole = [batch for data in passes(made(kind, None), 3) for batch, _ in data]
    data = made(kind, num_workers=workers)
    expected = passes(data, 8)
    assert (data.epoch, len(data), {len(one) for one in expected}) == (8, 4, {4})
    batches = [batch for one in expected for batch, _ in one]
    assert batches == whole[:32]
    flat = [step for one in expected for step in one]
    assert len({drawn for _, drawn in flat}) == len(flat)
    if kind is Forgetful:
        return
    for done in (0, 3, 4, 12, 13, 24) if not workers else (13,):
        first = made(kind, num_workers=workers)
        steps = (step for _ in range(8) for step in first)
        seen = [batch for batch in itertools.islice(steps, done)]  # noqa: C416
        other = made(kind, num_workers=workers)
        other.load_state_dict(first.state_dict())
        rest = [batch for one in passes(other, 8 - other.epoch) for batch, _ in one]
        assert seen + rest == batches


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [Lines, Kept])
def test_a_state_after_the_last_batch(kind: type[Any], workers: int) -> None:
    """A run that goes on at the end of a pass has the whole next pass."""
    options = {"num_workers": workers, "persistent_workers": workers > 0}
    expected = passes(made(kind, None, **options), 3)
    for _ in (data := made(kind, None, **options)):
        state = data.state_dict()
    other = made(kind, None, **options)
    other.load_state_dict(state)
    assert passes(other, 3) == [[], *expected[1:]]


def test_breaking_off() -> None:
    """The next pass begins where the one that was broken off began, also in the middle of data."""
    for kind in (Noisy, Lines, Kept):
        expected, data = passes(made(kind), 3), made(kind)
        passes(data, 1)
        next(iter(data))
        assert passes(data, 2) == expected[1:]
    data = made(Forgetful)
    passes(data, 1)
    next(iter(data))
    with pytest.raises(ValueError, match="Forgetful has no load_state_dict"):
        next(iter(data))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_first_look_at_a_stream(workers: int) -> None:
    """A batch that is looked at before the loop comes again, also from a stream with a place."""
    for kind in (Lines, Kept):
        options = {"num_workers": workers, "persistent_workers": workers > 0}
        expected = passes(made(kind, None, **options), 2)
        data = made(kind, None, **options)
        for _ in range(2):
            next(iter(data))
        assert passes(data, 2) == expected


class Going(Sampler[int]):
    """A sampler that goes on where it is, until its end."""

    def __init__(self) -> None:
        self.at = 0

    def __len__(self) -> int:
        return 23

    def __iter__(self) -> Iterator[int]:
        while self.at < 23:
            self.at += 1
            yield 5 * self.at % 23
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def test_a_sampler_with_a_place() -> None:
    """A first look takes no sample from the loop, and a pass at its end is not repeated."""

    def sampled() -> DataLoader[Any]:
        return DataLoader(Noisy(), 3, sampler=Going(), seed=3)

    expected = passes(sampled(), 3)
    data = sampled()
    next(iter(data))
    assert repr(passes(data, 2)) == repr(expected[:2])
    for _ in data:
        state = data.state_dict()
    other = sampled()
    other.load_state_dict(state)
    assert passes(other, 1) == [[]]
    assert repr(passes(other, 1)) == repr(passes(data, 1))


def test_breaking_off_again_and_again() -> None:
    """Passes that are broken off at the same place twice are warned of, with what to do."""
    data = made(Noisy, None)
    for _ in range(2):
        list(itertools.islice(data, 4))
    with pytest.warns(UserWarning, match="after the same 4 batches.*pass batches_per_pass=4"):
        list(itertools.islice(data, 4))


def test_a_state_saved_where_a_pass_was_left() -> None:
    """A pass was left and saved there: a resumed run would differ, which is told at once."""
    data, short = made(Noisy, None), made(Noisy, None, batch_size=8)
    for _ in zip(short, data, strict=False):  # the short loader ends the loop
        data.state_dict()
    state = data.state_dict()
    with pytest.warns(UserWarning, match=r"after 3 batches, and its state was .*_per_pass=3"):
        first = next(iter(data))
    other = made(Noisy, None)
    other.load_state_dict(state)
    assert next(iter(other)) != first


def test_passes_whose_end_is_not_asked_for() -> None:
    """A loop that takes exactly the batches of a pass is told how a pass ends."""
    for data in (made(Noisy, 4), made(Noisy, None)):
        for _ in range(2):
            list(itertools.islice(data, len(data)))
        with pytest.warns(UserWarning, match=r"asks for one more batch.*zip\(\.\.\., strict=True"):
            next(iter(data))


def test_where_warnings_point() -> None:
    """The warnings of a pass have the line of the loop."""
    data = made(Noisy, None)
    for _ in range(2):
        next(itertools.islice(data, 1, 2))
    with pytest.warns(UserWarning, match="after the same 2 batches") as repeated:
        next(iter(data))
    data = made(Noisy, None)
    outer = iter(data)
    next(outer), next(iter(data))
    with pytest.warns(UserWarning, match="the other pass's place") as inside:
        next(outer)
    assert {each.filename for each in [*repeated, *inside]} == {__file__}


class Endless(Sampler[int]):
    """A sampler whose state has tensors."""

    def __init__(self) -> None:
        self.generator = torch.Generator()

    def __iter__(self) -> Iterator[int]:
        while True:
            yield int(torch.randint(23, (), generator=self.generator))

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


class Shuffling(Endless):
    """Its state is that of its generator, and not its place."""

    def __len__(self) -> int:
        return 23

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(23, generator=self.generator).tolist()


def test_a_sampler_whose_state_has_no_place() -> None:
    """After a resume it begins anew, which is an error, not samples that come twice."""
    data = DataLoader(Noisy(), 3, sampler=Shuffling(), seed=3)
    next(iter(data))
    for _ in itertools.islice(data, 4):
        state = data.state_dict()
    other = DataLoader(Noisy(), 3, sampler=Shuffling(), seed=3)
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="of an epoch, Shuffling yields more than its 23 indices"):
        list(other)


def test_breaking_off_with_a_sampler_whose_state_has_tensors() -> None:
    """The places of passes are compared, whatever is in a sampler's state."""
    data = DataLoader(Noisy(), batch_size=2, sampler=Endless(), collate_fn=as_it_is)
    for _ in range(2):
        list(itertools.islice(data, 4))
    with pytest.warns(UserWarning, match="after the same 4 batches"):
        assert len([*itertools.islice(data, 4)]) == 4


def test_epochs_of_so_many_batches() -> None:
    """`set_epoch` finds any pass where the length is known, and says where it is not."""
    data = made(Noisy)
    data.set_epoch(5)
    assert passes(data, 2) == passes(made(Noisy), 7)[5:]
    with pytest.raises(ValueError, match=r"set_epoch\(5\): the next pass is number 0"):
        made(Lines).set_epoch(5)
    with pytest.raises(ValueError, match="batches_per_pass is 0; expected 1 or more"):
        made(Noisy, 0)
    with pytest.raises(ValueError, match="23 samples make no batch: a step takes 24 of them"):
        next(iter(made(Noisy, batch_size=24, drop_last=True)))
    with pytest.raises(ValueError, match="a loader with batches_per_pass 4, and this one has 5"):
        made(Noisy, 5).load_state_dict(made(Noisy).state_dict())


def weights_of(batch_size: int) -> list[Any]:
    data = made(Noisy, 13, batch_size=batch_size, collate_fn=None)
    return [
        (batch[0].tolist(), window.weight)
        for _ in range(2)
        for batch, window in accumulate(data, torch.nn.Identity(), 3)
    ]


def test_windows_and_ranks() -> None:
    """On ranks passes have equally many batches, and the weights of each window add up to one."""
    alone, ranks = weights_of(4), run_ranks(weights_of, 2)
    assert {len(steps) for steps in (alone, *ranks)} == {26}
    for steps, size in ((alone, 1), (list(zip(*ranks, strict=True)), 2)):
        weights = [sum(w for _, w in step) / 2 if size == 2 else step[1] for step in steps]
        windows = [weights[start : start + 3] for start in (0, 3, 6, 9, 13, 16)]
        assert [sum(window) for window in windows] == pytest.approx([1.0] * 6)
    for (indices, _), *parts in zip(alone, *ranks, strict=True):
        assert sorted({index for part, _ in parts for index in part}) == sorted(indices)


def steps(data: DataLoader[Any], inner: bool, windows: bool) -> list[Any]:
    """Two epochs; `inner` reads the same loader in the loop: one batch, and a whole pass."""
    pairs = accumulate(data, torch.nn.Linear(1, 1), 4) if windows else ((x, None) for x in data)
    seen = []
    for _ in range(2):
        for step, (batch, window) in enumerate(pairs):
            at = data.state_dict()
            kept = [part.tolist() for part in batch], window and (window.closed, window.weight)
            seen.append((kept, at["epoch"], at["position"], data.indices))
            if inner and step in (1, 7):
                next(iter(data))
            if inner and step in (2, 11):
                assert sum(len(x) for x, _ in data) == 23
        pairs = pairs if windows else ((x, None) for x in data)
    return seen


@pytest.mark.filterwarnings("ignore:a pass over the loader goes on", "ignore:the last two passes")
@pytest.mark.parametrize(("workers", "windows"), [(0, False), (0, True), (1, True)])
def test_passes_inside_of_a_pass(workers: int, windows: bool) -> None:
    """A pass over the same loader in its loop changes no batch, window, place or epoch."""
    options: dict[str, Any] = {"num_workers": workers, "collate_fn": None}
    data = made(Noisy, None, **options)
    expected = steps(made(Noisy, None, **options), inner=False, windows=windows)
    assert steps(data, inner=True, windows=windows) == expected
    assert data.epoch == 2


def test_passes_inside_of_a_pass_are_told() -> None:
    """A warning says where the state has another place; what has one place only raises."""
    data = made(Noisy, None)
    outer = iter(data)
    next(outer), next(iter(data))
    with pytest.warns(UserWarning, match=r"state_dict\(\) has the other pass's place"):
        next(outer)
    for alone in made(Lines, None), made(Noisy, None, num_workers=1, persistent_workers=True):
        outer = iter(alone)
        next(outer)
        assert sum(1 for _ in alone)
        with pytest.raises(RuntimeError, match=r"have only one place.*make a second loader"):
            list(outer)


@pytest.mark.parametrize("count", [None, 4])
def test_two_passes_of_a_stream(count: int | None) -> None:
    """A pass over a stream raises at its next batch, while the other pass is still going on."""
    data = made(Forgetful, count)
    outer = iter(data)
    next(outer)
    inner = iter(data)
    next(inner)
    place = data.state_dict()
    with pytest.raises(RuntimeError, match="have only one place"):
        next(outer)
    assert data.state_dict() == place
    assert len(list(inner)) == (11 if count is None else 3)
