"""Batches that `prefetch_to` has moved to a device before the loop asks for them."""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from test_data_passes import Lines, Noisy
from torch import Tensor, nn
from torch.utils.data import Dataset

from batteries import accumulate, t2d
from batteries.data import DataLoader

SIZE = 2


class Box:
    """Samples that move themselves: their numbers can be read on any device."""

    def __init__(self, samples: list[Any], device: str = "cpu") -> None:
        self.samples = samples
        self.device = device

    def to(self, device: torch.device) -> Box:
        if any(index == 8 and draw < 0 for index, draw in self.samples):
            raise OSError("sample 8 does not fit on the device")
        return Box(self.samples, str(device))


def too_large(samples: list[Any]) -> Box:
    return Box([(index, -draw) for index, draw in samples])


def made(kind: Any, prefetch_to: str | None = "meta", **options: Any) -> DataLoader[Any]:
    options = {"shuffle": True if kind is Noisy else None, "collate_fn": Box, **options}
    return DataLoader(kind(), SIZE, seed=3, prefetch_to=prefetch_to, **options)


def going_on(loader: DataLoader[Any], count: int | None = None) -> list[Any]:
    """The next batches of a pass, or the errors in their place."""
    seen: list[Any] = []  # (device, samples, what the loop draws)
    batches = iter(loader)
    while count is None or len(seen) < count:
        try:
            batch = next(batches)
        except StopIteration:
            break
        except OSError as error:
            seen.append(str(error))
        else:
            seen.append((batch.device, batch.samples, random.random()))
    return seen


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [Noisy, Lines])
def test_only_the_device_differs(kind: Any, workers: int) -> None:
    """Batches, draws, and where another loader goes on are those of a loader without it."""
    plain = made(kind, None, num_workers=workers)
    expected = [rest for _ in range(2) for _, *rest in going_on(plain)]
    for device in ("meta",) if workers else ("meta", "cpu"):
        loader = made(kind, device, num_workers=workers)
        seen = [outcome for _ in range(2) for outcome in going_on(loader)]
        assert {device for device, *_ in seen} == {device}
        assert [rest for _, *rest in seen] == expected
    first = made(kind, num_workers=workers)
    going_on(first, 5)
    for other in (made(kind, num_workers=workers), made(kind, None, num_workers=workers)):
        other.load_state_dict(first.state_dict())
        assert [rest for _, *rest in going_on(other)] == expected[5:12]


@pytest.mark.parametrize("kind", [Noisy, Lines])
def test_passes_of_so_many_batches(kind: Any) -> None:
    """A pass goes on where the last one stopped, though a batch more was read."""
    whole = [rest for _, *rest in going_on(made(kind))]
    loader = made(kind, batches_per_pass=4)
    seen = [samples for _ in range(3) for _, samples, _ in going_on(loader)]
    assert seen[:11] == [samples for samples, _ in whole[:11]]


@pytest.mark.parametrize("count", [None, lambda box: len(box.samples)])
def test_windows(count: Any) -> None:
    """The weights of windows, and the state inside of one, are those of a loader without it."""
    seen = []
    for device in ("meta", None):
        loader = made(Noisy, device, collate_fn=None if count is None else Box)
        windows = accumulate(loader, nn.Linear(1, 1), 4, count=count)
        seen.append([(w.weight, w.closed, loader.state_dict(), loader.indices) for _, w in windows])
    assert len(seen[0]) == 12
    assert seen[0] == seen[1]


@pytest.mark.parametrize("kind", [Noisy, Lines])
def test_a_batch_that_cannot_be_copied(kind: Any) -> None:
    """The error comes in the place of its batch, after which the pass goes on."""
    loader = made(kind, collate_fn=too_large)
    seen = going_on(loader)
    [at] = [
        at for at, outcome in enumerate(seen) if outcome == "sample 8 does not fit on the device"
    ]
    assert len(seen) == 12
    assert loader.epoch == 1
    again = made(kind, collate_fn=too_large)
    going_on(again, at + 2)
    other = made(kind, collate_fn=too_large)
    other.load_state_dict(again.state_dict())
    assert going_on(other) == seen[at + 2 :]


def broken_sampler() -> Iterator[int]:
    yield from range(5)
    raise LookupError("no more")


class Broken:
    def __iter__(self) -> Iterator[int]:
        return broken_sampler()


def test_an_error_of_the_sampler() -> None:
    """The batches before it come first."""
    batches = iter(DataLoader(Noisy(), sampler=Broken(), collate_fn=Box, prefetch_to="meta"))
    assert [next(batches).samples[0][0] for _ in range(5)] == list(range(5))
    with pytest.raises(LookupError, match="no more"):
        next(batches)


class Noted(Box):
    """Boxes that are known as long as anybody has them."""

    all: ClassVar[weakref.WeakSet[Noted]] = weakref.WeakSet()

    def to(self, device: torch.device) -> Noted:
        Noted.all.add(moved := Noted(self.samples, str(device)))
        return moved


@pytest.mark.parametrize("kind", [Noisy, Lines])
def test_the_loop_ends_early(kind: Any) -> None:
    """One batch is moved ahead, and none is held when the iterator has gone."""
    batches = iter(made(kind, collate_fn=Noted))
    for _ in range(3):
        batch = next(batches)
        assert batch in Noted.all
        assert len(Noted.all) == 2
    del batch
    del batches
    assert not Noted.all


def test_workers_of_a_loop_that_ends_early() -> None:
    """The workers end with the iterator."""
    batches: Any = iter(made(Noisy, num_workers=1))
    next(batches)
    [worker] = batches._workers
    del batches
    assert not worker.is_alive()


def test_nested_batches() -> None:
    """Tensors of a batch are moved wherever `to_device` finds them; what is there stays."""
    data: Any = [{"x": torch.ones(2), "name": "a", "pair": (1, 2.0)} for _ in range(4)]
    [batch] = DataLoader(data, 4, prefetch_to="meta")
    assert batch["x"].is_meta
    assert all(part.is_meta for part in batch["pair"])
    assert batch["name"] == ["a"] * 4
    assert t2d(batch["x"], "meta") is batch["x"]


def test_a_device_that_is_not_there() -> None:
    """It is told where the loader is made."""
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        made(Noisy, "gpu")


# ---------------------------------------------------------------- on a GPU


class Large(Dataset[Tensor]):
    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> Any:
        return {"x": torch.full((1 << 16,), float(index)), "names": [str(index)]}


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_a_slow_gpu_reads_each_batch(workers: int) -> None:
    """A step that begins late sees its own batch, though later ones were copied by then."""
    totals = []
    for batch in DataLoader(Large(), 4, num_workers=workers, prefetch_to=0):
        torch.cuda._sleep(10**7)  # type: ignore[no-untyped-call]  # the host is steps ahead
        totals.append(batch["x"].double().mean(1))
        del batch  # its memory may be used for a later one
    assert torch.cat(totals).tolist() == [float(index) for index in range(60)]


@pytest.mark.gpu
def test_a_loop_on_another_stream() -> None:
    """Steps on any stream come after the copies."""
    batches = iter(DataLoader(Large(), 4, prefetch_to="cuda"))
    totals = []
    for step in range(15):
        stream = torch.cuda.Stream() if step % 2 else torch.cuda.default_stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            totals.append(next(batches)["x"].double().mean(1).cpu())
    assert torch.cat(totals).tolist() == [float(index) for index in range(60)]


@pytest.mark.gpu
def test_moving_again_costs_nothing() -> None:
    """`t2d` of such a batch gives its own tensors, and nothing waits for the GPU."""
    loader = DataLoader(Large(), 4, prefetch_to=0)
    for batch in loader:  # the first kernels and pinned memory of a process make it wait
        batch["x"].sum()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in loader:
            assert t2d(batch, 0)["x"] is batch["x"]
            batch["x"].sum()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_other_kinds_of_tensors() -> None:
    """Sparse, packed and unpinned tensors arrive whole."""
    packed = nn.utils.rnn.pack_sequence([torch.arange(5.0), torch.arange(3.0)])
    batch: Any = {
        "sparse": torch.eye(3).to_sparse(),
        "packed": packed,
        "view": torch.arange(9.0)[::2],
    }
    data: Any = [batch]
    [moved] = DataLoader(data, batch_size=None, pin_memory=False, prefetch_to=0)
    assert moved["sparse"].is_cuda
    assert moved["sparse"].cpu().to_dense().equal(torch.eye(3))
    assert moved["packed"].data.cpu().equal(packed.data)
    assert moved["view"].cpu().equal(batch["view"])


@pytest.mark.gpu
def test_early_end_on_a_gpu() -> None:
    """Memory of batches that nobody has received is free when the iterator has gone."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    batches = iter(DataLoader(Large(), 4, prefetch_to=0))
    next(batches)
    del batches
    torch.cuda.synchronize()
    torch.empty(1, device="cuda")  # the allocator looks at what was in use
    assert torch.cuda.memory_allocated() <= before + 512
