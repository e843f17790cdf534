"""Running averages that do not wait for the device."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from batteries import distributed
from batteries._foreign import brief, values_in
from batteries._numbers import as_number
from batteries.distributed._groups import Group


class AverageMeter:
    """The weighted average of the numbers seen so far.

    >>> meter = AverageMeter()
    >>> meter.update(0.5, times=2)
    >>> meter.update(2.0)
    >>> meter.average, meter.sum, meter.counter, meter.value
    (1.0, 3.0, 3, 2.0)

    Tensors are added up on their device. `update` does not wait for the device. Reading waits.
    Sums are float64, or float32 on a device without float64. Without numbers, the average is NaN,
    and the other attributes are 0.
    """

    __slots__ = ("_counter", "_sum", "_value")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all numbers."""
        self._value: float | Tensor = 0.0
        self._sum: float | Tensor = 0.0
        self._counter: float | Tensor = 0

    def update(self, value: float | Tensor, times: float | Tensor = 1) -> None:
        """Add one number.

        Args:
            value: A number or a tensor of one element, such as the mean loss of a batch.
            times: The weight: the number of elements in the mean. 0 changes nothing.

        Raises:
            TypeError: The value or the weight is no number.
            ValueError: A tensor or array does not have exactly one element, or the weight is
                negative. On a device, a negative weight counts as 0, because reading it would wait.
        """
        # `type(...) is` is fast. isinstance(value, Tensor) takes as long as the addition.
        if type(value) is not float:
            value = _one_number(value, "value")
        if type(times) is not int:
            times = _one_number(times, "times")
        if type(times) is Tensor:  # on a device: reading it to handle 0 would wait
            times = times.clamp(min=0)
            if not isinstance(value, Tensor):  # of two numbers, `where` would make float32
                value = torch.full_like(times, value)
            value = torch.where(times > 0, value, self._value)
            self._sum = self._sum + torch.where(times > 0, value * times, 0)
        elif times > 0:
            self._sum = self._sum + value * times
        elif times == 0:
            return
        else:
            raise ValueError(f"times is {times}; expected the number of elements, 0 or more")
        self._value = value
        self._counter = self._counter + times

    @property
    def value(self) -> float:
        """The last number."""
        return float(self._value)

    @property
    def sum(self) -> float:
        """The sum of all numbers, each multiplied by its weight."""
        return float(self._sum)

    @property
    def counter(self) -> float:
        """The sum of the weights; an int if it is whole."""
        counter = float(self._counter)
        return int(counter) if counter.is_integer() else counter

    @property
    def average(self) -> float:
        """`sum / counter`; NaN without numbers."""
        counter = self.counter
        return self.sum / counter if counter else math.nan

    def all_reduce(self, group: Group = None) -> float:
        """The average over all ranks. All ranks call it, and the meter does not change.

        >>> meter = AverageMeter()
        >>> meter.update(0.5, times=2)
        >>> meter.all_reduce()
        0.5

        `all_reduce_meters` reduces several meters in one exchange.

        Args:
            group: The ranks: a `ProcessGroup`, a `DeviceMesh` of one dimension, or `(mesh, "dp")`.
                Default: all ranks.
        """
        return all_reduce_meters({"average": self}, group)["average"]

    def state_dict(self) -> dict[str, float]:
        """The state as plain numbers: value, sum and counter."""
        return {"value": self.value, "sum": self.sum, "counter": self.counter}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore a `state_dict`.

        Raises:
            KeyError, TypeError: The state does not come from `state_dict`.
        """
        names = "value", "sum", "counter"
        values = values_in(state, "AverageMeter.state_dict", *names)
        self._value, self._sum, self._counter = map(as_number, values, names)


AverageMetter = AverageMeter  # the specification's spelling


def all_reduce_meters(meters: Mapping[str, AverageMeter], group: Group = None) -> dict[str, float]:
    """The averages of meters over all ranks, in one exchange. All ranks call it.

    >>> meter = AverageMeter()
    >>> meter.update(0.5, times=2)
    >>> all_reduce_meters({"loss": meter})
    {'loss': 0.5}

    The ranks' sums and weights are added exactly (`math.fsum`), so every rank gets the same bits.
    The meters do not change. The average is NaN if the meters of that name have no numbers.

    Args:
        meters: The meters by name, with the same names on all ranks.
        group: As in `AverageMeter.all_reduce`.

    Raises:
        KeyError: A rank has meters with other names.
        TypeError: `meters` is something else, such as a list.
    """
    if not (isinstance(meters, Mapping) and all(hasattr(m, "counter") for m in meters.values())):
        raise TypeError(f"meters is {brief(meters)}; expected AverageMeters by their names")
    own = {name: (meter.sum, meter.counter) for name, meter in meters.items()}
    ranks = distributed.all_gather(own, group=group)
    for rank, theirs in enumerate(ranks):
        if set(theirs) != set(own):
            raise KeyError(
                f"rank {rank} has meters {sorted(theirs)}, this rank {sorted(own)}: pass meters "
                "with the same names on all ranks"
            )
    averages = {}
    for name in own:
        total, counter = map(_total, zip(*(theirs[name] for theirs in ranks), strict=True))
        averages[name] = total / counter if counter else math.nan
    return averages


def _total(parts: tuple[float, ...]) -> float:
    try:
        return math.fsum(parts)
    except (OverflowError, ValueError):  # too large for a float, or infinities of both signs
        return sum(parts)


def _one_number(value: float | Tensor, name: str) -> float | Tensor:
    """A python number, or for a tensor on a device a copy there, as float64 if possible."""
    if type(value) is Tensor and value.is_cpu and value.numel() == 1:  # the usual case, fast
        return value.item()
    if isinstance(value, Tensor | np.ndarray) and math.prod(value.shape) != 1:
        raise ValueError(
            f"AverageMeter takes one number at a time, but got a tensor of shape "
            f"{tuple(value.shape)}; pass its mean, and its number of elements as `times`"
        )
    if isinstance(value, Tensor) and not value.is_cpu:
        wide = torch.float32 if value.device.type == "mps" else torch.float64
        return value.detach().reshape(()).to(wide, copy=True)
    # Numbers of numpy become Python's, because numpy adds float32 numbers in float32.
    number = value.item() if hasattr(value, "item") else value
    return number if type(number) in (int, float, bool) else as_number(number, name)
