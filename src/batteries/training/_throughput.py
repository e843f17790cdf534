"""The speed of training: items a second, time spent waiting for data, and hardware use (MFU)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from batteries import distributed
from batteries._numbers import as_number
from batteries.distributed._groups import Group

T = TypeVar("T")


class Throughput:
    """Measures the speed of training without waiting for the GPU.

    >>> throughput = Throughput()
    >>> for x in throughput.watch([torch.ones(4, 2)] * 3):
    ...     throughput.update(x.shape[0])  # samples; or tokens, if they are what you count
    >>> sorted(throughput.compute())
    ['data_share', 'items_per_second', 'step_seconds']

    The time is measured on the host, which runs a few steps ahead of the GPU. This does not matter
    over ten steps or more, or if the loop reads a loss before `compute`. With `watch`, the time
    between two passes is left out. Put an evaluation or a save inside a pass into
    `with throughput.paused():`.

    Args:
        peak_flops: The FLOPs a second of one device in the dtype of the matrix products, from its
            data sheet: 989e12 for an H100 SXM in bfloat16. "mfu" needs it.
        group: The ranks of the job. Default: all ranks.

    Attributes:
        flops_per_item: FLOPs of the forward and backward pass of one item; None until counted.

    Raises:
        ValueError: `peak_flops` is not above 0.
        TypeError: `peak_flops` is not a number.
    """

    def __init__(self, *, peak_flops: float | None = None, group: Group = None) -> None:
        self.flops_per_item: float | None = None
        self._peak = None if peak_flops is None else _above_zero(peak_flops, "peak_flops")
        self._group = group
        self._watched = False
        self._mark: float | None = None  # the end of the last measured step
        self._waited = 0.0  # since then
        self._reset()

    def _reset(self) -> None:
        self._items, self._steps, self._elapsed, self._waiting = 0.0, 0, 0.0, 0.0

    def watch(self, batches: Iterable[T]) -> Watched[T]:
        """Measure how long the loop waits for batches of the loader, or of `accumulate`."""
        return Watched(batches, self)

    def update(self, items: float | Tensor) -> None:
        """Record the end of a step.

        Without `watch`, the first call only starts the clock, and the time between two passes
        counts.

        Args:
            items: The number of samples or tokens of the step on this rank. A tensor of one number
                is not waited for.

        Raises:
            TypeError: `items` is not one number.
        """
        now = time.perf_counter()
        count: Any = items
        if type(items) is not int and not (isinstance(items, Tensor) and items.numel() == 1):
            count = as_number(items, "items")
        if self._mark is not None:
            self._elapsed += now - self._mark
            self._waiting += self._waited
            self._items += count
            self._steps += 1
        self._mark, self._waited = now, 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of the block: an evaluation or a save inside a pass."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            if self._mark is not None:
                self._mark += time.perf_counter() - begun

    @contextmanager
    def count_flops(self, items: float) -> Iterator[None]:
        """Count the FLOPs of a forward and backward pass over some items. Once is enough.

        >>> throughput, model = Throughput(peak_flops=1e12), nn.Linear(8, 4)
        >>> with throughput.count_flops(items=2):
        ...     model(torch.ones(2, 8)).sum().backward()
        >>> throughput.flops_per_item  # a product forward, and one for the weight's gradient
        128.0

        `torch.utils.flop_counter` counts matrix products, convolutions and attention, as MFU does.
        Run `unwrap(model)` on a batch of the usual shape, without activation checkpointing: MFU
        does not count recomputed FLOPs. Recurrent layers and kernels of your own are not counted:
        set `flops_per_item` yourself then.

        Args:
            items: The number of samples or tokens in the batch, counted as for `update`.

        Raises:
            ValueError: No FLOPs were counted, or `items` is not above 0.
            TypeError: `items` is not a number.
        """
        from torch.utils.flop_counter import FlopCounterMode

        items = _above_zero(items, "items")
        counter = FlopCounterMode(display=False, custom_mapping=_formulas())
        with counter:
            yield
        if not counter.get_total_flops():
            raise ValueError(
                "no FLOPs were counted: run the model's forward and backward pass inside the block"
            )
        self.flops_per_item = counter.get_total_flops() / items

    def compute(self) -> dict[str, float]:
        """The means of the whole job since the last call. All ranks call it.

        Returns:
            "items_per_second" of all ranks together and "step_seconds". With `watch` also
            "data_share", the share of the time in which the loop waited for batches. With
            `peak_flops` and `count_flops` also "mfu", the share of `peak_flops` that was used by
            the ranks that called `count_flops`. The result is {} if no step was measured.
        """
        own = [self._items, self._steps, self._elapsed, self._waiting]
        own += [self._items * (self.flops_per_item or 0.0), float(self._watched), 1.0]
        own += [self._elapsed * (self.flops_per_item is not None)]
        self._reset()
        shared = distributed.all_reduce(
            torch.tensor(own, dtype=torch.float64, device="cpu"), group=self._group
        )
        items, steps, elapsed, waiting, flops, watched, ranks, counted = shared.tolist()
        if not (steps and elapsed):
            return {}
        found = {"items_per_second": items * ranks / elapsed, "step_seconds": elapsed / steps}
        if watched:
            found["data_share"] = min(waiting / elapsed, 1.0)
        if flops and self._peak is not None:
            found["mfu"] = flops / counted / self._peak
        return found

    def _begin(self) -> float:
        self._watched, self._mark = True, time.perf_counter()
        return self._mark


class Watched(Generic[T]):
    """The batches of `Throughput.watch`.

    >>> list(Throughput().watch([1, 2]))
    [1, 2]
    """

    def __init__(self, batches: Iterable[T], of: Throughput) -> None:
        self._batches = batches
        self._of = of

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[T]:
        begun = self._of._begin()
        batches = iter(self._batches)  # some loaders start their workers here
        self._of._waited = time.perf_counter() - begun
        return _Timed(batches, self._of)


class _Timed(Iterator[T]):
    def __init__(self, batches: Iterator[T], of: Throughput) -> None:
        self._batches = batches
        self._of = of

    def __next__(self) -> T:
        begun = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self._of._waited += time.perf_counter() - begun


def _above_zero(value: Any, name: str) -> float:
    number = as_number(value, name)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} is {number}; expected a number above 0")
    return number


def _formulas() -> dict[Any, Any]:
    """Formulas for attention on the CPU, which torch does not count, and convolutions in groups."""
    from torch.utils.flop_counter import (
        conv_flop_count,
        sdpa_backward_flop_count,
        sdpa_flop_count,
    )

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    def backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]

    def convolution(gradient: Any, x: Any, weight: Any, *options: Any, **_: Any) -> int:
        # Torch multiplies the weight's gradient by the number of groups.
        transposed, wanted = options[4], options[7]
        each: int = conv_flop_count(x, weight, gradient, transposed)
        return each * (wanted[0] + wanted[1])  # type: ignore[no-any-return]

    known = torch.ops.aten
    return {
        known._scaled_dot_product_flash_attention_for_cpu: forward,
        known._scaled_dot_product_flash_attention_for_cpu_backward: backward,
        known.convolution_backward: convolution,
    }
