"""A batch that fails is skipped by who goes on; the rest of the pass is what it was."""

from __future__ import annotations

import itertools
import random
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from batteries import accumulate
from batteries.data import DataLoader

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

BAD = {5, 6, 20}


class Samples(Dataset[Any]):
    def __init__(self, bad: set[int] = BAD) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> Any:
        if index in self.bad:
            raise OSError(f"{index} is damaged")
        return index, random.random()


class Lines(IterableDataset[Any]):
    """Whoever reads it goes on after a line that cannot be read."""

    def __init__(self, bad: set[int] = BAD) -> None:
        self.bad, self.at = bad, 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self.at == 23:
            self.at = 0
            raise StopIteration
        self.at += 1
        if self.at - 1 in self.bad:
            raise OSError(f"{self.at - 1} is damaged")
        return self.at - 1, random.random()

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def as_it_is(samples: list[Any]) -> list[Any]:
    return samples


def made(kind: Any, bad: set[int] = BAD, size: int = 1, **options: Any) -> DataLoader[Any]:
    return DataLoader(kind(bad), size, collate_fn=as_it_is, seed=3, **options)


def going_on(batches: Iterator[Any], count: int | None = None) -> list[Any]:
    """What came, and the names of the errors."""
    seen: list[Any] = []
    while count is None or len(seen) < count:
        try:
            seen.append(next(batches))
        except OSError as error:
            seen.append(str(error).split("\n")[-1] or str(error))
        except StopIteration:
            break
    return seen


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("kind", [Samples, Lines])
def test_a_batch_that_fails(kind: Any, workers: int) -> None:
    """The others come as ever, the epoch ends whole, and a state goes on in its place."""
    good = made(kind, set(), num_workers=workers)
    whole = [batch for _ in range(2) for batch in good]
    data = made(kind, num_workers=workers)
    seen = [outcome for _ in range(2) for outcome in going_on(iter(data))]
    failed = [outcome for outcome in seen if isinstance(outcome, str)]
    assert len(failed) == 6
    assert all("is damaged" in outcome for outcome in failed)
    assert data.epoch == 2
    places = [place for place, batch in enumerate(whole) if batch[0][0] in BAD]
    assert [place for place, outcome in enumerate(seen) if isinstance(outcome, str)] == places
    others = [batch for batch in whole if batch[0][0] not in BAD]
    assert [outcome for outcome in seen if not isinstance(outcome, str)] == others
    for done in (9,) if workers else (5, 6, 9):
        data = made(kind, num_workers=workers)
        going_on(iter(data), done)
        other = made(kind, num_workers=workers)
        other.load_state_dict(data.state_dict())
        rest = going_on(iter(other))
        received = max(place for place in range(done) if place not in places) + 1
        expected = seen[received:23]
        assert [str(outcome)[-20:] for outcome in rest] == [str(o)[-20:] for o in expected]


@pytest.mark.parametrize("kind", [Samples, Lines])
def test_passes_of_so_many_batches(kind: Any) -> None:
    """Batches that failed count among those of a pass."""
    data, whole = made(kind, batches_per_pass=8), made(kind)
    seen = [[str(o)[-20:] for o in going_on(iter(data))] for _ in range(3)]
    expected = [str(o)[-20:] for _ in range(2) for o in going_on(iter(whole))]
    assert [len(outcomes) for outcomes in seen] == [8, 8, 8]
    assert [outcome for outcomes in seen for outcome in outcomes] == expected[:24]


class Ends(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from range(7)
        raise OSError("the file ends")


def test_streams_that_cannot_go_on() -> None:
    """An error that ends a stream is told by each worker that read it, whose part it was."""
    loader: DataLoader[Any] = DataLoader(Ends(), num_workers=2, sharded=False, seed=3)
    seen = going_on(iter(loader))
    assert sum(isinstance(outcome, str) for outcome in seen) == 2
    assert sorted(int(outcome) for outcome in seen if not isinstance(outcome, str)) == [*range(7)]


def test_errors_that_are_not_of_a_batch() -> None:
    """After an error of the sampler the pass is over, and does not count."""

    def order() -> Iterator[int]:
        yield 0
        raise OSError("no such index")

    class Sampler:
        def __iter__(self) -> Iterator[int]:
            return order()

    for workers in (0, 1):
        data: Any = DataLoader(
            TensorDataset(torch.arange(4)), sampler=Sampler(), num_workers=workers
        )
        seen = going_on(iter(data))
        assert [isinstance(outcome, str) for outcome in seen][-1:] == [True]
        assert data.epoch == 0


@pytest.mark.parametrize("bad", [set(), {0}, {2}, {3}, {2, 3}, {0, 1, 2, 3}, {6, 7}, {9}])
@pytest.mark.parametrize("known", [True, False])
def test_windows(bad: set[int], known: bool) -> None:
    """The last good batch of a window closes it, and the state is after all of the window."""
    options: dict[str, Any] = {} if known else {"count": len}
    data: DataLoader[Any] = DataLoader(Tens(bad), 1, seed=3)
    pairs, seen = iter(accumulate(data, torch.nn.Identity(), 4, **options)), []
    for outcome in iter(lambda: going_on(pairs, 1), []):
        if not isinstance(outcome[0], str):
            batch, window = outcome[0]
            position = data.state_dict()["position"]
            seen.append((int(batch), window.closed, position, window.weight))
    starts = [start for start in (0, 4, 8) if {*range(start, min(start + 4, 10))} - bad]
    closing = [max({*range(start, min(start + 4, 10))} - bad) for start in starts]
    assert [number for number, *_ in seen] == [n for n in range(10) if n not in bad]
    assert [number for number, closed, *_ in seen if closed] == closing
    ends = [min(start + 4, 10) for start in starts]
    assert [at for number, _, at, _ in seen if number in closing] == ends
    assert data.epoch == 1
    if not known:
        assert sum(weight for *_, weight in seen) == pytest.approx(len(closing))
    foreign = torch.utils.data.DataLoader(Tens(bad))
    pairs = iter(accumulate(foreign, torch.nn.Identity(), 4))
    came = [o for o in going_on(pairs) if not isinstance(o, str)]
    assert [(int(batch), window.closed) for batch, window in came] == [s[:2] for s in seen]


class Tens(Samples):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)[0]


def test_the_workers_of_a_pass() -> None:
    """The iterator shows its worker processes, which end when it is dropped after an error."""
    batches = iter(made(Samples, {0}, num_workers=1))
    with pytest.raises(OSError, match="0 is damaged"):
        next(batches)
    [worker] = batches._workers  # type: ignore[attr-defined]
    assert worker.is_alive()
    assert next(itertools.islice(batches, 1))
    del batches
    assert worker.exitcode == 0


@pytest.mark.skipif(sys.version_info < (3, 11), reason="errors have no notes")
@pytest.mark.parametrize("workers", [0, 1])
def test_errors_say_which_sample(workers: int) -> None:
    """An error in a dataset says at which index, or item, with workers and without."""
    both: list[tuple[Dataset[Any], str]] = [
        (Samples({5}), "in dataset[5]\n"),
        (Ends(), "in item 7 of Ends\n"),
    ]
    for data, place in both:
        with pytest.raises(OSError, match=r"damaged|ends") as caught:
            list(DataLoader(data, 2, num_workers=workers))
        assert place in "".join(traceback.format_exception(caught.value))
