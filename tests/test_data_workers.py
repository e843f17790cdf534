"""What datasets see inside workers, how they are divided, and what workers cannot send."""

from __future__ import annotations

import gc
import itertools
import os
import random
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import warm
from ranks import DEADLINE, run_ranks
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from batteries import distributed
from batteries.data import DataLoader

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Range(IterableDataset[Any]):
    """torch's recipe: the items from `start` to `end`, which the workers divide in some way."""

    def __init__(self, way: str = "", end: int = 12) -> None:
        self.start, self.end, self.way = 0, end, way
        self.rank, self.ranks = 0, 1

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(self.end - self.start).tolist()  # before it is divided
        number, workers = 0, 1
        info = get_worker_info()
        if info is not None and self.way == "asks":
            number, workers = info.id, info.num_workers
        if info is not None and self.way == "is curious":
            number = info.id * 0
        number, workers = self.rank * workers + number, self.ranks * workers
        for place in order[number::workers]:
            yield self.start + place, random.random()


def as_it_is(samples: list[Any]) -> list[Any]:
    return samples


def of(data: Any, **options: Any) -> list[Any]:
    loader: DataLoader[Any] = DataLoader(data, 2, collate_fn=as_it_is, seed=3, **options)
    return [item for batch in loader for item in batch]


def divide(worker_id: int, asks: bool = True) -> None:
    """The `worker_init_fn` of torch's pages."""
    info = get_worker_info()
    assert info is not None
    assert info.id == worker_id
    dataset: Any = info.dataset
    share = 12 // (info.num_workers if asks else 2)
    dataset.start, dataset.end = share * worker_id, share * worker_id + share


# ---------------------------------------------------------------- divided once


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("way", ["", "asks", "is divided by worker_init_fn"])
def test_every_item_comes_once(way: str, workers: int) -> None:
    """A dataset is divided once among workers, whether it does so itself or not."""
    init = divide if way == "is divided by worker_init_fn" else None
    items = of(Range(way), num_workers=workers, worker_init_fn=init)
    assert sorted(item for item, _ in items) == list(range(12))
    later = [draw for _, draw in items[2 * workers :]]
    assert len(set(later)) == len(later)


def sharded_on_ranks(way: str, sharded: Any, workers: int) -> Any:
    data = Range(way)
    if sharded in (True, "ranks"):
        data.rank, data.ranks = distributed.rank(), distributed.world_size()
    try:
        return [item for item, _ in of(data, num_workers=workers, sharded=sharded)]
    except ValueError as error:
        return str(error)


def all_sharded() -> list[Any]:
    told = [
        sharded_on_ranks(way, sharded, workers)
        for way, sharded in (("", False), ("asks", "workers"), ("", "ranks"), ("asks", True))
        for workers in (0, 2)
    ]
    return [*told, sharded_on_ranks("", None, 0)]


def test_every_item_comes_once_on_ranks() -> None:
    """Each value of `sharded` divides what the dataset does not; on ranks it has to be said."""
    *parts, (error, _) = zip(*run_ranks(all_sharded), strict=True)
    for part in parts:
        assert sorted(item for items in part for item in items) == list(range(12))
        assert [len(items) for items in part] == [6, 6]
    assert "Range is an iterable dataset that 2 ranks read" in error
    assert "sharded='workers'" in error


class AtOnce(Range):
    """A stream that shuffles when it is asked for its iterator, not at its first item."""

    def __iter__(self) -> Iterator[Any]:
        return iter(torch.randperm(self.end).tolist())


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_that_shuffle_at_once(workers: int) -> None:
    """Every item comes once, in an order that depends only on the seed and the epoch."""
    orders = []
    for noise in range(2):
        torch.manual_seed(noise)
        data = DataLoader(AtOnce(), 2, seed=3, num_workers=workers)
        orders.append([[item for batch in data for item in batch.tolist()] for _ in range(2)])
    [first, second], again = orders
    assert [first, second] == again
    assert first != second
    assert sorted(first) == [*range(12)]


class Files(IterableDataset[Any]):
    """A stream with a list of files, in an order that each pass makes in some way."""

    def __init__(self, way: str) -> None:
        self.files, self.way = [f"shard-{number}" for number in range(9)], way

    def __iter__(self) -> Iterator[str]:
        if self.way == "in place":
            random.shuffle(self.files)
        elif self.way == "a new list":
            self.files = random.sample(self.files, 9)
        elif self.way == "sorted first":
            self.files.sort()
            random.shuffle(self.files)
        else:
            self.order = random.sample(self.files, 9)
        yield from self.order if self.way == "a copy" else self.files
        if self.way == "at the end":
            random.shuffle(self.files)


WAYS = {"in place": True, "a new list": True, "at the end": True, "sorted first": False}
WAYS["a copy"] = False


@pytest.mark.parametrize("way", WAYS)
def test_streams_that_change_their_order(way: str) -> None:
    """A warning names a list whose order depends on earlier passes, and only such a one."""
    told = "Files puts its list files into another order"
    first, later = (DataLoader(Files(way), seed=3) for _ in range(2))
    later.set_epoch(2)
    with pytest.warns(UserWarning, match=told) if WAYS[way] else nullcontext():
        third = [[*first] for _ in range(3)][2]
        assert ([*later] == third) != WAYS[way]


@pytest.mark.parametrize("files", [[*"abcde"], np.arange(5)])
def test_a_copy_that_can_be_shuffled(files: Any) -> None:
    """The warning's way to shuffle a copy works for lists and arrays."""
    stream: Any = Files("in place")
    stream.files = files
    with pytest.warns(UserWarning, match="into another order") as told:
        next(iter(DataLoader(stream, seed=3)))
    [way] = re.findall(r"random\.sample\(.*\)\)", str(told[0].message))
    assert sorted(eval(way, {"random": random, "self": stream})) == sorted(stream.files)


@pytest.mark.parametrize("lasts", [True, False])
def test_streams_that_change_their_order_in_workers(lasts: bool) -> None:
    """Workers that last keep the order of the pass before; others begin with the program's."""
    data = DataLoader(Files("in place"), seed=3, num_workers=2, persistent_workers=lasts)
    warnings.simplefilter("error")
    if lasts:
        with pytest.raises(UserWarning, match="Files puts its list files into another order"):
            next(iter(data))
    else:
        assert len([*data, *data]) == 18


class Lesson(Dataset[Any]):
    """Samples of a difficulty that the program changes."""

    def __init__(self) -> None:
        self.level, self.inner = 0, [SimpleNamespace(size=8)]

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return self.level


@pytest.mark.parametrize("lasts", [True, False])
def test_datasets_that_change_between_passes(lasts: bool) -> None:
    """Workers that last have the old values, and a warning says so."""
    lesson = Lesson()
    data = DataLoader(lesson, 4, num_workers=1, persistent_workers=lasts)
    assert [batch.tolist() for batch in (*data, *data)] == [[0] * 4] * 2
    lesson.level = 1
    if lasts:
        with pytest.warns(UserWarning, match=r"Lesson has changed .* \(level\)") as told:
            assert next(iter(data)).tolist() == [0] * 4
        assert told[0].filename == __file__
    else:
        assert next(iter(data)).tolist() == [1] * 4


def test_what_is_not_clear_is_asked() -> None:
    """A dataset that asks for its id alone may divide itself or not: an error asks."""
    with pytest.raises(ValueError, match=r"Range reads id of get_worker_info\(\)\. It is not"):
        of(Range("is curious"), num_workers=2)
    init = partial(divide, asks=False)
    with pytest.raises(ValueError, match="worker_init_fn reads Range from get_worker_info"):
        of(Range(), num_workers=2, worker_init_fn=init)
    once = of(Range("is curious"), num_workers=2, sharded=False)
    assert sorted(item for item, _ in once) == list(range(12))
    once = of(Range(), num_workers=2, worker_init_fn=init, sharded="workers")
    assert sorted(item for item, _ in once) == list(range(12))
    with pytest.raises(ValueError, match="sharded is 'worker'; expected True, False"):
        of(Range(), sharded="worker")


# ---------------------------------------------------------------- the user's own object


class Seen(Dataset[Any]):
    """Samples that say what `get_worker_info` has, and an attribute that `worker_init_fn` set."""

    offset = 0

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        info = get_worker_info()
        return info is None or info.dataset is self, index + self.offset


def move(_: int) -> None:
    dataset: Any = get_worker_info().dataset  # type: ignore[union-attr]
    dataset.offset = 100


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_the_dataset_of_a_worker(start: str) -> None:
    """`get_worker_info().dataset` and `loader.dataset` are the user's own object."""
    data = Seen()
    assert DataLoader(data).dataset is data
    options: dict[str, Any] = {"num_workers": 1, "worker_init_fn": move}
    told = of(data, multiprocessing_context=start, **options)
    assert told == [(True, 100 + index) for index in range(4)]


# ---------------------------------------------------------------- the state of a stream


class Buffered(IterableDataset[Any]):
    """Items through a buffer of tensors, all of which is its state."""

    def __init__(self, length: int = 60, size: int = 1000) -> None:
        self.at, self.length, self.taken = 0, length, 0
        self.buffer = [torch.zeros(2) for _ in range(size)]

    def __iter__(self) -> Iterator[Any]:
        while self.at < self.length:
            self.at += 1
            place = random.randrange(len(self.buffer))
            old, self.buffer[place] = self.buffer[place], torch.rand(2)
            yield self.at, old.tolist(), self.taken
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        self.taken += 1
        return {"at": self.at, "buffer": self.buffer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at, self.buffer = state["at"], list(state["buffer"])


@pytest.mark.parametrize("workers", [0, 2])
def test_large_states(workers: int) -> None:
    """The state of a stream is taken now and then, and a run goes on from any batch exactly."""

    def made() -> DataLoader[Any]:
        return DataLoader(Buffered(), 2, seed=3, collate_fn=as_it_is, num_workers=workers)

    expected = [item for batch in made() for item in batch]
    assert max(taken for *_, taken in expected) < 15  # of 30 batches, or 15 of each worker
    for done in (1, 20):
        loader = made()
        seen = [i for batch in itertools.islice(loader, done) for i in batch]
        state = loader.state_dict()
        other = made()
        other.load_state_dict(state)
        rest = [item for batch in other for item in batch]
        assert [i[:2] for i in seen + rest] == [i[:2] for i in expected]


class Told(Range):
    """Its state is another protocol: it has to be told how far the loop is."""

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        return {"at": num_samples, "whole": from_beginning}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError(state)


def test_a_state_that_needs_arguments() -> None:
    """A dataset whose `state_dict` needs arguments is one without a memory, which is told."""
    data: DataLoader[Any] = DataLoader(Told(), 2, collate_fn=as_it_is, seed=3)
    assert len([item for batch in data for item in batch]) == 12
    next(iter(data))
    with pytest.raises(ValueError, match=r"Told has .* no state_dict\(\) without arguments"):
        data.load_state_dict({**data.state_dict(), "position": 1})
    data.load_state_dict({**data.state_dict(), "position": 0})


# ---------------------------------------------------------------- what cannot be sent


class Unsendable(Dataset[Any]):
    def __init__(self, way: str) -> None:
        self.way = way

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        class OwnError(Exception):
            """An error of a class that cannot be imported."""

        if index == 2 and self.way == "error":
            raise OwnError("the file is empty")
        return (lambda: index) if index == 2 and self.way == "batch" else index


@pytest.mark.parametrize(
    ("way", "told"),
    [("batch", r"a worker could not send a batch, a list: "), ("error", "is empty")],
)
def test_what_a_worker_cannot_send(way: str, told: str) -> None:
    """A batch or an error that cannot be pickled ends the epoch with an error."""
    with pytest.raises(RuntimeError, match=told):
        of(Unsendable(way), num_workers=1, timeout=60)


class Lines(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([0, lambda: 1])


def test_the_last_batch_of_a_stream() -> None:
    """A batch that cannot be sent is told also where it is the last of its worker."""
    with pytest.raises(RuntimeError, match="a worker could not send a batch"):
        of(Lines(), num_workers=2, timeout=60)


def test_the_end_of_a_started_process() -> None:
    """A process of multiprocessing whose loop fails ends, though something holds its iterator."""
    program = (
        "import multiprocessing\nfrom batteries.data import DataLoader\nheld = []\n"
        "def loop():\n"
        "    held.append(iter(DataLoader(range(100), num_workers=1)))\n"
        "    next(held[0])\n    raise OSError('no space')\n"
        "started = multiprocessing.get_context('fork').Process(target=loop)\n"
        "started.start()\nstarted.join(60)\nprint(started.exitcode)\nstarted.kill()\n"
    )
    result = warm.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout == "1\n", result.stderr


class Slow(Dataset[int]):
    """A sample that takes so long that the loop is left before it comes."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> int:
        if index:
            time.sleep(600)
        return index


def test_a_worker_that_is_busy_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that does not end with its pass is killed, though it ignores SIGTERM otherwise."""
    # the seconds after which torch gives up on workers
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)
    batches: Any = iter(DataLoader(Slow(), num_workers=1))
    next(batches)
    [worker] = batches._workers
    batches.close()
    worker.join(DEADLINE)
    assert worker.exitcode == -signal.SIGKILL


class Left:
    """An object in a cycle of references, whose end in another process leaves a file."""

    def __init__(self) -> None:
        self.own, self.process = self, os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.process:
            Path("ended").touch()


def leave_garbage_to_workers() -> None:
    gc.set_threshold(10**9)
    os.register_at_fork(after_in_child=lambda: gc.set_threshold(1))
    data: Any = range(8)
    Left()
    assert len(list(DataLoader(data, num_workers=2, multiprocessing_context="fork"))) == 8
    Path("done").touch()


def test_workers_leave_garbage_to_the_program() -> None:
    """Workers never collect the program's garbage, whose locks a fork may have left closed."""
    warm.start(leave_garbage_to_workers).join()
    assert Path("done").exists()
    assert not Path("ended").exists()
