"""The largest batch that fits in memory, and the accumulation that keeps the effective size."""

from __future__ import annotations

import gc
import operator
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from batteries import distributed
from batteries._seeding import isolated_rng
from batteries.distributed._groups import Group

_TEXTS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


class BatchSize(NamedTuple):
    """What `find_batch_size` has found.

    >>> BatchSize(batch_size=16, accumulation_steps=4)
    BatchSize(batch_size=16, accumulation_steps=4)

    Attributes:
        batch_size: Samples of a micro-batch, on each rank.
        accumulation_steps: Of them in a window: together they are as many as was asked for.
    """

    batch_size: int
    accumulation_steps: int


def find_batch_size(step: Callable[[int], object], start: int, *, group: Group = None) -> BatchSize:
    """Halve the batch until a step fits in the memory of every rank.

    >>> model = nn.Linear(8, 1)
    >>> def step(batch_size: int) -> None:
    ...     model(torch.randn(batch_size, 8)).mean().backward()
    ...     model.zero_grad()
    >>> find_batch_size(step, start=64)
    BatchSize(batch_size=64, accumulation_steps=1)

    All ranks call it, and get the same sizes. Of sizes, those that divide `start` are tried, so
    that `accumulate(loader, model, accumulation_steps)` has exactly its samples. Generators are
    left as they were.

    Args:
        step: A forward and backward pass on so many samples, of the largest shape that there is,
            and the optimizer's step if its state is not there yet: what needs the memory. Nothing
            in it waits for other ranks, since one may run out of memory before: call
            `unwrap(model)`, not DDP; a model of FSDP2 cannot be tried on one rank alone.
        start: The effective size: samples of a window, on each rank.

    Raises:
        ValueError: `start` below 1.
        RuntimeError: Not even one sample fits.
        Exception: Another error of `step`, on any rank, on all of them.
    """
    start = size = operator.index(start)
    if start < 1:
        raise ValueError(f"start is {start}; expected 1 or more samples")
    while True:
        with isolated_rng():
            fits = distributed.together(partial(_fits, step, size), group)
        _free()
        if distributed.all_reduce(int(fits), "min", group=group):
            return BatchSize(size, start // size)
        if size == 1:
            raise RuntimeError(
                "not even a batch of 1 fits in the memory of every rank: use a smaller model, "
                "shorter samples, activation checkpointing or a lower precision"
            )
        size = next(n for n in range(size // 2, 0, -1) if start % n == 0)


def _fits(step: Callable[[int], object], size: int) -> bool:
    try:
        step(size)
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        return False  # behind this block nothing holds what the step had made
    return True


def _is_memory(error: BaseException) -> bool:
    known: tuple[Any, ...] = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, known) or any(text in str(error).lower() for text in _TEXTS)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
