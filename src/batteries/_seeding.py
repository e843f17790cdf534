"""Seeds for all random generators, different on each rank and in each worker."""

from __future__ import annotations

import hashlib
import os
import random
import struct
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from batteries import distributed
from batteries._backends import adopt_backends, chosen_backends
from batteries._foreign import values_in
from batteries._numbers import as_seed, as_whole

_SEED = "BATTERIES_SEED"
_numbered: Counter[Hashable] = Counter()  # counts since the last `seed_all(seed)`


def seed_all(seed: int = 42, *, deterministic: bool = True, rank: int | None = None) -> None:
    """Seed python, numpy, torch and CUDA.

    >>> seed_all(42)
    >>> torch.initial_seed()
    42

    In a distributed program, call it without `rank` before the model is created: every rank gets
    the same weights. `batteries.data.DataLoader` then gives the ranks different dropout masks and
    augmentations. With torch's own loader, call it again after the model is created, with
    `rank=distributed.rank()`. You can repeat this second call in each epoch, with the epoch in the
    seed.

    `DataLoader(..., worker_init_fn=seed_all)` gives the workers the same seeds as `seed_worker`.
    Workers read the rank from the launcher's environment. Without a launcher (`mp.spawn`), pass the
    rank: `worker_init_fn=functools.partial(seed_all, rank=rank)`.

    Args:
        seed: From 0 to 2**64 - 1. Without `rank`, python, numpy and torch get this number itself
            (numpy as two words if it is 2**32 or more).
        deterministic: Use deterministic algorithms of cudnn, cuBLAS and torch, and let torch warn
            of operations that have none. With False, cudnn searches for the fastest algorithms,
            unless `set_backends` has set `cudnn_benchmark`.
        rank: The number of this rank, for another seed on each rank. Default: the same seed on all
            ranks; in a worker of a loader, the rank of the process.

    Raises:
        TypeError, ValueError: The seed or the rank is not a whole number, or out of range.
    """
    seed, rank = as_seed(seed), None if rank is None else as_whole(rank, "rank", 0)
    _choose_algorithms(deterministic)
    worker = get_worker_info()
    if worker is not None:
        adopt_backends()
        base_seed = worker.seed - worker.id
        rank = distributed.rank() if rank is None else rank
        # With the argument, so that a worker can be seeded again with another number.
        _seed_from(_entropy(base_seed, rank, worker.id, seed))
    elif rank is not None:
        _seed_from(_entropy(seed, rank))
    else:
        random.seed(seed)
        np.random.seed(seed if seed < 2**32 else [seed % 2**32, seed // 2**32])
        torch.manual_seed(seed)
        os.environ[_SEED] = str(seed)
        _numbered.clear()


def _choose_algorithms(deterministic: bool) -> None:
    """Set all of https://docs.pytorch.org/docs/stable/notes/randomness.html except seeds."""
    torch.backends.cudnn.deterministic = deterministic
    benchmark = chosen_backends().get("cudnn_benchmark", not deterministic)
    torch.backends.cudnn.benchmark = benchmark
    # Like torch.use_deterministic_algorithms, which would import the compiler for a second.
    torch.set_deterministic_debug_mode("warn" if deterministic else "default")
    if deterministic:
        # torch would fill new empty tensors, which takes time and changes no result.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first use of CUDA


def seed_worker(worker_id: int) -> None:
    """Seed a DataLoader worker differently on each rank, as `worker_init_fn=seed_worker`.

    >>> data = torch.utils.data.DataLoader(range(8), num_workers=2, worker_init_fn=seed_worker)

    Torch also seeds its workers, but equally on ranks that have the same seed. Here the seed
    depends on the loader's base seed (which is new in each epoch), the rank and the worker.

    Raises:
        RuntimeError: The call is not in a worker.
    """
    if get_worker_info() is None:
        raise RuntimeError(
            "seed_worker runs inside DataLoader workers: pass it as worker_init_fn=seed_worker; "
            "use seed_all(seed) elsewhere"
        )
    seed_all(worker_id, deterministic=torch.backends.cudnn.deterministic)


def chosen_seed(seed: int | None = None) -> int:
    """The seed, or by default that of the last `seed_all(seed)` without a rank, else 42.

    Processes that start later read it from the environment.
    """
    return as_seed(int(os.environ.get(_SEED, 42)) if seed is None else seed)


def next_number(kind: Hashable) -> int:
    """The next number of a kind, from 0 after each `seed_all(seed)` without a rank."""
    _numbered[kind] += 1
    return _numbered[kind] - 1


def note_checkpoint() -> None:
    _numbered["checkpoints"] += 1


def is_made_again(place: Hashable) -> bool:
    """Whether the program was at this place before it last made a checkpoint."""
    checkpoints = _numbered["checkpoints"]
    return _numbered.setdefault(("place", place), checkpoints) < checkpoints


def numbered_seed(seed: int, number: int) -> int:
    """The seed for the n-th of several objects with the same seed; for 0, the seed itself."""
    return int.from_bytes(_entropy(seed, number)[:8], "little") if number else seed


# `random.seed` for integers only, which is faster.
_seed_python = super(random.Random, random._inst).seed


def rekey(*numbers: int) -> None:
    """Seed python, numpy, torch and CUDA by numbers from -2**63 to 2**64 - 1.

    It takes about ten microseconds, so it can be called for each sample.
    """
    try:
        packed = struct.pack(f"<{len(numbers)}Q", *numbers)
    except struct.error:  # a number is negative
        packed = struct.pack(f"<{len(numbers)}Q", *(number % 2**64 for number in numbers))
    words = struct.unpack("<QQQ", hashlib.blake2b(packed, digest_size=24).digest())
    _seed_python(words[0])
    random._inst.gauss_next = None  # type: ignore[attr-defined]
    np.random.seed(words[1] % 2**32)
    word = words[2] >> 1  # 63 bits, so that `torch.tensor(torch.initial_seed())` works
    torch.default_generator.manual_seed(word)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for generator in torch.cuda.default_generators:
            generator.manual_seed(word)


def rng_state() -> dict[str, Any]:
    """The states of this process's generators: python's, numpy's, torch's and the GPUs'.

    >>> state = rng_state()
    >>> first = random.random(), torch.rand(1)
    >>> set_rng_state(state)
    >>> first == (random.random(), torch.rand(1))
    True

    The states are plain values and tensors. `make_checkpoint(..., rng=rng_state())` stores those of
    rank 0. To store those of all ranks, pass `rng=distributed.all_gather(rng_state())`.
    """
    kind, words, *rest = np.random.get_state(legacy=True)
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.array(words)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": gpus,
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restore the generators from a result of `rng_state`.

    >>> set_rng_state(rng_state())

    Raises:
        KeyError, TypeError: The state does not come from `rng_state`.
        ValueError: The state has more GPUs than this machine.
    """
    names = "cuda", "python", "numpy", "torch"
    gpus, (version, words, gauss), (kind, array, *rest), own = values_in(state, "rng_state", *names)
    # Counting the GPUs takes some milliseconds, so it is left out if the state has none.
    if gpus and len(gpus) > torch.cuda.device_count():
        raise ValueError(
            f"the state has the generators of {len(gpus)} GPUs, but this machine has "
            f"{torch.cuda.device_count()}: use as many GPUs, or do not load the state"
        )
    random.setstate((version, tuple(words), gauss))
    np.random.set_state((kind, array.cpu().numpy(), *rest))  # it may be read onto any device
    torch.set_rng_state(own.cpu())
    for index, generator in enumerate(gpus):
        torch.cuda.set_rng_state(generator.cpu(), index)


@contextmanager
def isolated_rng() -> Iterator[None]:
    """Restore all generators at the end of a block.

    >>> with isolated_rng():
    ...     noise = torch.randn(3)
    """
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
        if not state["cuda"] and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            # The block was the first code to use a GPU. A GPU's generator begins like the CPU's.
            torch.cuda.manual_seed_all(torch.initial_seed())


def _entropy(*numbers: int) -> bytes:
    """32 bytes, different for every tuple of numbers."""
    return hashlib.blake2b(repr([int(n) for n in numbers]).encode(), digest_size=32).digest()


def _seed_from(entropy: bytes) -> None:
    # Torch gets 63 bits, which fit into a tensor. Python and numpy get 96 bits each: with numpy's
    # usual 32 bits, some of 400,000 streams would be equal.
    torch.manual_seed(int.from_bytes(entropy[:8], "little") >> 1)
    random.seed(int.from_bytes(entropy[8:20], "little"))
    np.random.seed(np.frombuffer(entropy[20:], dtype="<u4"))
