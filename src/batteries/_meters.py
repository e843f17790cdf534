"""Running averages that do not wait for the device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from batteries import distributed
from batteries.distributed._groups import Group


class AverageMeter:
    """The weighted average of the numbers seen so far.

    >>> meter = AverageMeter()
    >>> meter.update(0.5, times=2)
    >>> meter.update(2.0)
    >>> meter.average, meter.sum, meter.counter, meter.value
    (1.0, 3.0, 3, 2.0)

    What lies on a device is added up there: `update` does not wait for it, reading does. Sums are
    float64 (float32 on a device without it). Fresh or reset, the average is NaN; the rest reads 0.
    """

    __slots__ = ("_counter", "_sum", "_value")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything.

        >>> meter = AverageMeter()
        >>> meter.reset()
        """
        self._value: float | Tensor = 0.0
        self._sum: float | Tensor = 0.0
        self._counter: float | Tensor = 0

    def update(self, value: float | Tensor, times: float | Tensor = 1) -> None:
        """Take in one number.

        >>> AverageMeter().update(torch.tensor(0.5), times=32)

        Args:
            value: One number, such as the mean loss of a batch; a tensor has one element.
            times: How many elements the value is the mean of, its weight. 0 changes nothing.

        Raises:
            ValueError: More than one number, or a negative weight.
        """
        # `type(...) is` first: asking whether an int is a Tensor takes as long as adding it up.
        if type(value) is not float:
            value = _one_number(value)
        if type(times) is not int:
            times = _one_number(times)
        if type(times) is Tensor:  # on a device, where 0 must be handled unseen
            times = times.clamp(min=0)
            value = torch.where(times > 0, value, self._value)
            self._sum = self._sum + torch.where(times > 0, value * times, 0)
        elif times > 0:
            self._sum = self._sum + value * times
        elif times == 0:
            return
        else:
            raise ValueError(f"times is {times}; expected how many elements the value stands for")
        self._value = value
        self._counter = self._counter + times

    @property
    def value(self) -> float:
        """The number last taken in."""
        return float(self._value)

    @property
    def sum(self) -> float:
        """The numbers, each times its weight, added up."""
        return float(self._sum)

    @property
    def counter(self) -> float:
        """The weights added up: an int where they are ints."""
        counter = float(self._counter)
        return int(counter) if counter.is_integer() else counter

    @property
    def average(self) -> float:
        """The sum over the counter; NaN while nothing was taken in."""
        counter = self.counter
        return self.sum / counter if counter else math.nan

    def all_reduce(self, group: Group = None) -> float:
        """The average over all ranks; all of them call it.

        >>> meter = AverageMeter()
        >>> meter.update(0.5, times=2)
        >>> meter.all_reduce()
        0.5

        The meter stays as it is. Several at once: `all_reduce_meters`.

        Args:
            group: The ranks: a `ProcessGroup`, a `DeviceMesh` of one dimension, or `(mesh, "dp")`.
                Default: all.
        """
        return all_reduce_meters({"average": self}, group)["average"]

    def state_dict(self) -> dict[str, float]:
        """What is known, as plain numbers.

        >>> AverageMeter().state_dict()
        {'value': 0.0, 'sum': 0.0, 'counter': 0}
        """
        return {"value": self.value, "sum": self.sum, "counter": self.counter}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from a `state_dict`.

        >>> AverageMeter().load_state_dict({"value": 1.0, "sum": 2.0, "counter": 2})
        """
        self._value, self._sum, self._counter = state["value"], state["sum"], state["counter"]


AverageMetter = AverageMeter  # the specification's spelling


def all_reduce_meters(meters: Mapping[str, AverageMeter], group: Group = None) -> dict[str, float]:
    """The averages of meters over all ranks, in one exchange; all ranks call it.

    >>> meter = AverageMeter()
    >>> meter.update(0.5, times=2)
    >>> all_reduce_meters({"loss": meter})
    {'loss': 0.5}

    Sums and weights are added up, in float64 and without an error of rounding, so the result is
    the weighted average, bit by bit the same on every rank. The meters stay as they are.

    Args:
        group: As in `AverageMeter.all_reduce`.

    Raises:
        KeyError: A rank has other meters.
    """
    own = {name: (meter.sum, meter.counter) for name, meter in meters.items()}
    ranks = distributed.all_gather(own, group=group)
    for rank, theirs in enumerate(ranks):
        if set(theirs) != set(own):
            raise KeyError(f"rank {rank} has meters {sorted(theirs)}, this one {sorted(own)}")
    totals = {
        name: [_total(part) for part in zip(*(theirs[name] for theirs in ranks), strict=True)]
        for name in own
    }
    return {
        name: total / counter if counter else math.nan for name, (total, counter) in totals.items()
    }


def _total(parts: Iterable[float]) -> float:
    parts = list(parts)
    try:
        return math.fsum(parts)
    except (OverflowError, ValueError):  # too large for a float, or infinities of both signs
        return sum(parts)


def _one_number(value: float | Tensor) -> float | Tensor:
    """A python number from the CPU, a wide copy on a device: the caller may reuse the tensor."""
    if type(value) is Tensor and value.is_cpu and value.numel() == 1:  # the usual, and fast
        return value.item()
    if isinstance(value, Tensor | np.ndarray) and math.prod(value.shape) != 1:
        raise ValueError(
            f"AverageMeter takes one number at a time, got one of shape {tuple(value.shape)}; "
            "pass its mean, and how many elements it has as `times`"
        )
    if isinstance(value, Tensor) and not value.is_cpu:
        wide = torch.float32 if value.device.type == "mps" else torch.float64
        return value.detach().reshape(()).to(wide, copy=True)
    # of numpy too: float32 plus float32 would be float32
    number: float = value.item() if hasattr(value, "item") else value
    return number
