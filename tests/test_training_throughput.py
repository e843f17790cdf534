"""What is measured of a job's speed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from ranks import run_ranks
from torch import nn
from torch.nn import functional

from batteries import distributed
from batteries.training import Throughput


class Clock:
    """A host's clock on which time passes when the test says so."""

    now = 0.0

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(time, "perf_counter", lambda: self.now)

    def slow(self, seconds: float, count: int) -> Iterator[int]:
        for number in range(count):
            self.now += seconds
            yield number


def job() -> dict[str, float]:
    """Rank 0 computes 2 s a step; rank 1 waits 3 s for twice the items."""
    rank = distributed.rank()
    with pytest.MonkeyPatch.context() as patch:
        clock, throughput = Clock(patch), Throughput(peak_flops=100.0)
        throughput.flops_per_item = 10.0
        for _ in throughput.watch(clock.slow(1.0, 3)):
            pass  # no step: nothing counts but the waiting
        throughput.compute()
        for _ in range(2):
            for _ in throughput.watch(clock.slow(3.0 * rank, 5)):
                clock.now += 2.0 * (1 - rank)
                throughput.update(10 * (1 + rank))
            clock.now += 100.0  # an evaluation
        return throughput.compute()


def test_the_whole_job() -> None:
    """Items of all ranks by their time; the share of waiting; what came between does not count."""
    for found in run_ranks(job):
        assert found == pytest.approx({
            "items_per_second": 300 / 25, "step_seconds": 2.5, "data_share": 30 / 50,
            "mfu": 300 * 10 / 50 / 100,
        })  # fmt: skip


def test_without_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step starts the clock, and nothing is said of data."""
    clock, throughput = Clock(monkeypatch), Throughput()
    throughput.update(10**9)
    assert throughput.compute() == {}
    clock.now += 4.0
    throughput.update(8)
    assert throughput.compute() == {"items_per_second": 2.0, "step_seconds": 4.0}


def test_errors_of_batches() -> None:
    """An error of a batch passes through, and the next call goes on behind it."""

    class Failing(Iterator[int]):
        calls = 0

        def __next__(self) -> int:
            self.calls += 1
            if self.calls == 2:
                raise ValueError("bad")
            return self.calls

    batches = iter(Throughput().watch(Failing()))
    assert next(batches) == 1
    with pytest.raises(ValueError, match="bad"):
        next(batches)
    assert next(batches) == 3


def test_flops_are_counted() -> None:
    """Products and attention, forward and backward, are counted as by hand; nothing is an error."""
    throughput, project = Throughput(), nn.Linear(16, 48, bias=False)
    x = torch.randn(2, 8, 16, requires_grad=True)
    with throughput.count_flops(items=2 * 8):
        q, k, v = project(x).reshape(2, 8, 3, 2, 8).permute(2, 0, 3, 1, 4)
        loss = functional.scaled_dot_product_attention(q, k, v).sum()
        loss.backward()  # type: ignore[no-untyped-call]
    linear = 3 * 2 * 16 * 48  # multiplications and additions, forward and twice backward
    attention = 2 * (2 + 5) * 8 * 16  # two products of 8 keys by 16 numbers, and five backward
    assert throughput.flops_per_item == linear + attention
    with pytest.raises(ValueError, match="no FLOPs were counted"), throughput.count_flops(1):
        pass


def test_flops_of_convolutions_in_groups() -> None:
    """Each gradient takes what the forward pass takes, also of a depthwise convolution."""
    x = torch.randn(2, 8, 5, 6, requires_grad=True)
    for layer, weights in (
        (nn.Conv2d(8, 16, 3, padding=1, groups=8), 16 * 9),
        (nn.Conv2d(8, 8, 3, padding=1), 8 * 8 * 9),
    ):
        throughput = Throughput()
        with throughput.count_flops(items=1):
            layer(x).sum().backward()
        assert throughput.flops_per_item == 3 * 2 * 2 * 30 * weights
    throughput, up = Throughput(), nn.ConvTranspose1d(4, 8, 2, stride=2, groups=2)
    with throughput.count_flops(items=1):
        up(torch.randn(2, 4, 7)).sum().backward()
    assert throughput.flops_per_item == 2 * 2 * 2 * 7 * (4 * 4 * 2)


def test_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation inside of a pass is no part of a step's time, also where it raised."""
    clock, throughput = Clock(monkeypatch), Throughput()
    for number in throughput.watch(clock.slow(1.0, 4)):
        clock.now += 3.0
        throughput.update(8)
        with pytest.raises(ValueError, match="bad"), throughput.paused():  # noqa: PT012
            clock.now += 50.0 * number
            raise ValueError("bad")
    assert throughput.compute() == {
        "items_per_second": 2.0, "step_seconds": 4.0, "data_share": 0.25,
    }  # fmt: skip


def test_the_wait_for_data_is_that_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start of the workers is waiting; the end of a pass, which no step follows, is not."""

    class Slow(Clock):
        def __iter__(self) -> Iterator[int]:
            self.now += 2.0
            return self.ending()

        def ending(self) -> Iterator[int]:
            yield 0
            self.now += 7.0

    clock = Slow(monkeypatch)
    throughput = Throughput()
    for _ in range(3):
        for _ in throughput.watch(clock):
            clock.now += 2.0
            throughput.update(1)
    assert throughput.compute()["data_share"] == 0.5


def test_what_cannot_be_counted() -> None:
    """Zero items, or a peak of zero, would be divided by."""
    for items in (None, "4", torch.ones(2)):
        with pytest.raises(TypeError, match=r"items is .*; expected one number"):
            Throughput().update(items)  # type: ignore[arg-type]
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"peak_flops is .*; expected a number above 0"):
            Throughput(peak_flops=wrong)
        with (
            pytest.raises(ValueError, match=r"items is .*; expected a number above 0"),
            Throughput().count_flops(wrong),
        ):
            pass


def counted_by_rank_0() -> dict[str, float]:
    with pytest.MonkeyPatch.context() as patch:
        clock, throughput = Clock(patch), Throughput(peak_flops=100.0)
        throughput.flops_per_item = 10.0 if distributed.rank() == 0 else None
        for _ in throughput.watch(clock.slow(1.0, 5)):
            throughput.update(4)
        return throughput.compute()


def test_flops_that_one_rank_has_counted() -> None:
    """MFU is that of the ranks that know their FLOPs, not diluted by the others."""
    for found in run_ranks(counted_by_rank_0):
        assert found["mfu"] == pytest.approx(0.4)
