from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from batteries import AverageMeter, AverageMetter, all_reduce_meters

READINGS = ("value", "average", "sum", "counter")


def read(meter: AverageMeter) -> list[float]:
    return [getattr(meter, name) for name in READINGS]


def test_weighted_average() -> None:
    """The average is numpy's weighted average of what was taken in."""
    values = [random.Random(0).uniform(-5, 5) for _ in range(1000)]
    weights = [random.Random(1).randint(1, 64) for _ in range(1000)]
    meter = AverageMeter()
    for value, weight in zip(values, weights, strict=True):
        meter.update(torch.tensor(value, dtype=torch.float64), weight)
    assert meter.average == pytest.approx(np.average(values, weights=weights), rel=1e-12)
    assert meter.counter == sum(weights)
    assert meter.value == values[-1]


def test_many_float32_values() -> None:
    """A million float32 losses lose nothing: sums are float64."""
    meter = AverageMeter()
    value = torch.tensor(0.1)
    for _ in range(100_000):
        meter.update(value)
    assert meter.average == pytest.approx(value.item(), rel=1e-10)


def test_fresh_and_reset() -> None:
    """Fresh or reset, a meter has added up nothing, and has no average."""
    meter = AverageMeter()
    assert read(meter) == pytest.approx([0, math.nan, 0, 0], nan_ok=True)
    meter.update(2.0, 3)
    assert read(meter) == [2, 2, 6, 3]
    meter.reset()
    assert read(meter) == pytest.approx([0, math.nan, 0, 0], nan_ok=True)
    assert math.isnan(all_reduce_meters({"loss": meter})["loss"])


@pytest.mark.parametrize("zero", [0, torch.tensor(0)])
def test_zero_times(zero: int) -> None:
    """`times=0` changes nothing, NaN included."""
    meter = AverageMeter()
    meter.update(float("nan"), zero)
    assert (meter.sum, meter.counter) == (0, 0)
    meter.update(1.5, 2)
    meter.update(torch.tensor(float("nan")), zero)
    assert read(meter) == [1.5, 1.5, 3, 2]


def test_the_tensor_may_be_reused() -> None:
    """What happens to a tensor after the update does not change the meter."""
    loss = torch.ones((), requires_grad=True) * 2
    meter = AverageMeter()
    meter.update(loss, 1)
    loss.detach().fill_(100)
    assert read(meter) == [2, 2, 2, 1]


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), torch.tensor([[0.5]])])
def test_kinds_of_numbers(number: float) -> None:
    """Numpy scalars and tensors of one element are numbers."""
    meter = AverageMeter()
    meter.update(number, np.int64(4))
    assert read(meter) == [0.5, 0.5, 2, 4]


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_narrow_numbers_are_widened(kind: type) -> None:
    """Numpy's narrow numbers are added up in float64, and narrow weights do not wrap around."""
    meter = AverageMeter()
    for _ in range(10_000):
        meter.update(kind(0.1), np.uint8(200))
    assert meter.average == pytest.approx(float(kind(0.1)), rel=1e-10)
    assert meter.counter == 2_000_000


def test_device_sums_are_wide() -> None:
    """On a device sums are float64 whatever is put in, weights on the device included."""
    pairs: list[tuple[float | Tensor, int]]
    pairs = [(1, 1), (torch.tensor(1, device="meta"), 2), (0.5, 3)]
    for value, times in pairs:
        meter = AverageMeter()
        meter.update(value, torch.tensor(times, device="meta"))
        meter.update(torch.tensor(1.0, device="meta"), times)
        assert meter._sum.dtype == torch.float64  # type: ignore[union-attr]


def test_state() -> None:
    """A meter goes on from its state as if it had not stopped."""
    meter, resumed = AverageMeter(), AverageMeter()
    meter.update(torch.tensor(1.5), 2)
    resumed.load_state_dict(meter.state_dict())
    meter.update(3)
    resumed.update(3)
    assert read(resumed) == read(meter)
    assert all(type(value) in (int, float) for value in meter.state_dict().values())


def test_not_one_number() -> None:
    """A vector is refused with its shape and what to pass."""
    with pytest.raises(ValueError, match=r"shape \(32,\); pass its mean"):
        AverageMeter().update(torch.zeros(32))
    with pytest.raises(ValueError, match=r"shape \(32,\); pass its mean"):
        AverageMeter().update(np.zeros(32))  # type: ignore[arg-type]


def test_negative_times() -> None:
    """A negative weight is refused."""
    with pytest.raises(ValueError, match="times is -1"):
        AverageMeter().update(1.0, -1)


def test_alias() -> None:
    """The specification's spelling is the same class."""
    assert AverageMetter is AverageMeter


def update_on(device: torch.device) -> AverageMeter:
    meter = AverageMeter()
    loss = torch.tensor(0.5, device=device)
    meter.update(loss, 2)
    loss.fill_(2.0)
    meter.update(loss, torch.tensor(1, device=device))
    meter.update(loss * float("nan"), torch.tensor(0, device=device))
    return meter


@pytest.mark.gpu
def test_device_tensors_do_not_wait() -> None:
    """Taking in tensors of a GPU does not synchronise; reading gives the numbers."""
    device = torch.device("cuda", 0)
    update_on(device)  # the first kernels of a process are loaded, which waits
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, times = torch.rand(2, device=device).unbind()
        meter = AverageMeter()
        meter.update(loss, times)
        meter.update(loss, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert meter.average == pytest.approx(loss.item())
    assert read(update_on(device)) == [2.0, 1.0, 3.0, 3]


def test_a_weight_on_a_device() -> None:
    """A number with a weight on a device stays exact: its tensors are float64."""
    meter = AverageMeter()
    meter.update(0.1, torch.tensor(3, device="meta"))
    for part in (meter._value, meter._sum, meter._counter):
        assert isinstance(part, torch.Tensor)
        assert part.dtype == torch.float64


def test_device_tensors_are_not_read() -> None:
    """Numbers on a device stay there: even a device that cannot be read takes updates."""
    meter = AverageMeter()
    meter.update(torch.tensor(1.0, device="meta"), 2)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        _ = meter.average


@pytest.mark.parametrize("wrong", [[AverageMeter()], {"loss": 1.0}])
def test_what_is_no_meter(wrong: Any) -> None:
    """A list of meters, or a number, is named in the error."""
    with pytest.raises(TypeError, match=r"meters is .*; expected AverageMeters by their names"):
        all_reduce_meters(wrong)
