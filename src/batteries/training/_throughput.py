"""How fast a job trains: items a second, waiting for data, and the use of the hardware."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch

from batteries import distributed
from batteries.distributed._groups import Group

T = TypeVar("T")


class Throughput:
    """Measures the speed of training without waiting for a device.

    >>> throughput = Throughput()
    >>> for x in throughput.watch([torch.ones(4, 2)] * 3):
    ...     throughput.update(x.shape[0])  # samples; or tokens, if they are what you count
    >>> sorted(throughput.compute())
    ['data_share', 'items_per_second', 'step_seconds']

    The clock is the host's, which runs a few steps ahead of a GPU: over some ten steps, or where
    the loop reads a loss before `compute`, that does not count. What lies between two passes, such
    as evaluation, is left out.

    Args:
        peak_flops: FLOPs a second of one device in the dtype of the matrix products, by its data
            sheet, for "mfu": 989e12 for an H100 SXM in bfloat16.
        group: The ranks that are one job, as in `accumulate`.

    Attributes:
        flops_per_item: FLOPs of the forward and backward pass of an item, once they were counted.
    """

    def __init__(self, *, peak_flops: float | None = None, group: Group = None) -> None:
        self.flops_per_item: float | None = None
        self._peak = peak_flops
        self._group = group
        self._watched = False
        self._mark: float | None = None  # up to when time was added up
        self._reset()

    def _reset(self) -> None:
        self._items, self._steps, self._elapsed, self._waiting = 0.0, 0, 0.0, 0.0

    def watch(self, batches: Iterable[T]) -> Watched[T]:
        """Measure how long the loop waits for batches: put it around the loader, or `accumulate`.

        >>> len(Throughput().watch([1, 2]))
        2
        """
        return Watched(batches, self)

    def update(self, items: int) -> None:
        """Note a step, at its end, with the samples or tokens that this rank has taken.

        >>> Throughput().update(32)

        Without `watch`, the first call starts the clock.
        """
        now = time.perf_counter()
        if self._mark is not None:
            self._elapsed += now - self._mark
            self._items += items
            self._steps += 1
        self._mark = now

    @contextmanager
    def count_flops(self, items: int) -> Iterator[None]:
        """Count the FLOPs of a forward and backward pass over some items; once is enough.

        >>> throughput, model = Throughput(peak_flops=1e12), nn.Linear(8, 4)
        >>> with throughput.count_flops(items=2):
        ...     model(torch.ones(2, 8)).sum().backward()
        >>> throughput.flops_per_item  # a product forward, and one for the weight's gradient
        128.0

        `torch.utils.flop_counter` counts products, convolutions and attention, as MFU has it. Run
        the bare model, `unwrap(model)`, on a batch of the usual shape.

        Raises:
            ValueError: No FLOPs were seen.
        """
        from torch.utils.flop_counter import FlopCounterMode

        counter = FlopCounterMode(display=False, custom_mapping=_attention_on_cpu())
        with counter:
            yield
        if not counter.get_total_flops():
            raise ValueError(
                "no FLOPs were counted: run the model's forward and backward pass inside the block"
            )
        self.flops_per_item = counter.get_total_flops() / items

    def compute(self) -> dict[str, float]:
        """The means since the last call, of the whole job; all ranks call it.

        >>> Throughput().compute()  # nothing was measured
        {}

        Returns:
            "items_per_second" of all ranks together, "step_seconds", and where they are known,
            "data_share", the part of the time in which the loop waited for batches, and "mfu", the
            part of `peak_flops` that was used.
        """
        own = [self._items, self._steps, self._elapsed, self._waiting]
        own += [self._items * (self.flops_per_item or 0.0), float(self._watched), 1.0]
        self._reset()
        shared = distributed.all_reduce(torch.tensor(own, dtype=torch.float64), group=self._group)
        items, steps, elapsed, waiting, flops, watched, ranks = shared.tolist()
        if not (steps and elapsed):
            return {}
        found = {"items_per_second": items * ranks / elapsed, "step_seconds": elapsed / steps}
        if watched:
            found["data_share"] = min(waiting / elapsed, 1.0)
        if flops and self._peak is not None:
            found["mfu"] = flops / elapsed / self._peak
        return found

    def _begin(self) -> None:
        self._watched, self._mark = True, time.perf_counter()

    def _waited(self, seconds: float) -> None:
        self._waiting += seconds


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
        self._of._begin()
        return _Timed(iter(self._batches), self._of)


class _Timed(Iterator[T]):
    def __init__(self, batches: Iterator[T], of: Throughput) -> None:
        self._batches = batches
        self._of = of

    def __next__(self) -> T:
        begun = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self._of._waited(time.perf_counter() - begun)


def _attention_on_cpu() -> dict[Any, Any]:
    """Torch counts attention on GPUs alone."""
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    def backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]

    known = torch.ops.aten
    return {
        known._scaled_dot_product_flash_attention_for_cpu: forward,
        known._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
