"""The largest batch that fits in memory, with the accumulation that keeps the effective size."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from batteries import distributed
from batteries._numbers import as_whole
from batteries._seeding import isolated_rng
from batteries.distributed._groups import Group

_TEXTS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


class BatchSize(NamedTuple):
    """The result of `find_batch_size`.

    >>> BatchSize(batch_size=16, accumulation_steps=4)
    BatchSize(batch_size=16, accumulation_steps=4)

    Attributes:
        batch_size: Samples in a micro-batch, on each rank.
        accumulation_steps: Micro-batches in a window. The product of both is `start`.
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

    All ranks call it and get the same sizes. Only divisors of `start` are tried, so a window of
    `accumulate(loader, model, accumulation_steps)` has exactly `start` samples. The random
    generators keep their states.

    Args:
        step: A function that gets a number of samples. It runs a forward and a backward pass on
            this many samples of the largest shape, and steps the optimizer if the optimizer has no
            state yet. It must not wait for other ranks, because another rank may have run out of
            memory: call `unwrap(model)`, not DDP. A model of FSDP2 cannot be tried.
        start: The effective batch size: the samples of a window, on each rank.
        group: The ranks that train together. Default: all ranks.

    Raises:
        ValueError: `start` is below 1.
        TypeError: `start` is not a whole number.
        RuntimeError: Not even one sample fits.
        Exception: Any other error of `step`; all ranks raise it.
    """
    start = size = as_whole(start, "start", 1, " samples")
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
    except (MemoryError, torch.OutOfMemoryError):
        return False  # after this block nothing refers to the step's tensors
    except RuntimeError as error:
        if not any(text in str(error).lower() for text in _TEXTS):
            raise
        return False
    return True


def _free() -> None:
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
