"""Seeds: one call for every generator, and streams that never meet across ranks and workers."""

from __future__ import annotations

import hashlib
import operator
import random

import numpy as np
import torch
from torch.utils.data import get_worker_info

from batteries import distributed


def seed_all(seed: int = 42, *, deterministic: bool = True, rank: int | None = None) -> None:
    """Seed python, numpy, torch and CUDA.

    >>> seed_all(42)
    >>> torch.initial_seed()
    42

    Call it twice in a distributed program. Without `rank` before the model is made: every rank
    starts from identical weights. With `rank=distributed.rank()` once it is made: the ranks draw
    different dropout masks and augmentations. The second call's seeds depend on both numbers, so
    it may be repeated for each epoch, with the epoch in the seed.

    As `DataLoader(..., worker_init_fn=seed_all)` it does what `seed_worker` does. Workers know
    the rank from the launcher's environment; without a launcher (`mp.spawn`) give it to them:
    `worker_init_fn=functools.partial(seed_all, rank=rank)`.

    Args:
        seed: From 0 to 2**64 - 1. `torch.manual_seed` gets the number itself where there is no
            `rank`; so do python and numpy (which takes numbers over 2**32 as two words).
        deterministic: Let cudnn choose deterministic algorithms (and not benchmark them);
            False lets it benchmark for the fastest.
        rank: Give each rank a stream of its own.

    Raises:
        TypeError, ValueError: The seed is not an integer, or out of range.
    """
    seed = operator.index(seed)  # numpy's integers too
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; expected an integer from 0 to 2**64 - 1")
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    worker = get_worker_info()
    if worker is not None:
        base_seed = worker.seed - worker.id
        rank = distributed.rank() if rank is None else rank
        # The argument is mixed in, so that a worker may be seeded again.
        _seed_from(_entropy(base_seed, rank, worker.id, seed))
    elif rank is not None:
        _seed_from(_entropy(seed, rank))
    else:
        random.seed(seed)
        np.random.seed(seed if seed < 2**32 else [seed % 2**32, seed // 2**32])
        torch.manual_seed(seed)


def seed_worker(worker_id: int) -> None:
    """Give a DataLoader worker streams of its own, as `worker_init_fn=seed_worker`.

    >>> data = torch.utils.data.DataLoader(range(8), num_workers=2, worker_init_fn=seed_worker)

    Torch seeds its own and python's generators in a worker, but from numbers that are equal on
    ranks seeded alike. Here the streams are a function of the loader's base seed (new in each
    epoch), the rank and the worker.

    Raises:
        RuntimeError: It was called outside a worker.
    """
    if get_worker_info() is None:
        raise RuntimeError(
            "seed_worker runs inside DataLoader workers: pass it as worker_init_fn=seed_worker; "
            "use seed_all(seed) elsewhere"
        )
    seed_all(worker_id, deterministic=torch.backends.cudnn.deterministic)


def _entropy(*numbers: int) -> bytes:
    """32 bytes, different for every tuple of numbers.

    >>> _entropy(1, 0, 1) == _entropy(1, 1, 0)
    False
    """
    return hashlib.blake2b(repr([int(n) for n in numbers]).encode(), digest_size=32).digest()


def _seed_from(entropy: bytes) -> None:
    # Torch gets 64 bits, python and numpy 96 each: with numpy's usual 32, some of 400,000 streams
    # would be equal.
    torch.manual_seed(int.from_bytes(entropy[:8], "little"))
    random.seed(int.from_bytes(entropy[8:20], "little"))
    np.random.seed(np.frombuffer(entropy[20:], dtype="<u4"))
