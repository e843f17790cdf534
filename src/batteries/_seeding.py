"""Seeds: one call for every generator, and streams that never meet across ranks and workers."""

from __future__ import annotations

import hashlib
import operator
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

_SEED = "BATTERIES_SEED"
_numbered: Counter[Hashable] = Counter()  # since the last `seed_all(seed)`


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
        deterministic: Choose deterministic algorithms where there are some, in cudnn, cuBLAS and
            torch, and let torch warn of operations that have none. False lets cudnn benchmark for
            the fastest, unless `set_backends` was told otherwise.
        rank: Give each rank a stream of its own.

    Raises:
        TypeError, ValueError: The seed is not an integer, or out of range.
    """
    seed = _checked(seed)
    _choose_algorithms(deterministic)
    worker = get_worker_info()
    if worker is not None:
        adopt_backends()
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
        os.environ[_SEED] = str(seed)
        _numbered.clear()


def _choose_algorithms(deterministic: bool) -> None:
    """What https://docs.pytorch.org/docs/stable/notes/randomness.html names, besides seeds."""
    torch.backends.cudnn.deterministic = deterministic
    benchmark = chosen_backends().get("cudnn_benchmark", not deterministic)
    torch.backends.cudnn.benchmark = benchmark
    # As torch.use_deterministic_algorithms does, which takes a second to import the compiler.
    torch.set_deterministic_debug_mode("warn" if deterministic else "default")
    if deterministic:
        # An empty tensor is to be overwritten: filling it first would cost, and change no result.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA is first used


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


def chosen_seed(seed: int | None = None) -> int:
    """The seed that was asked for: here, else by the last `seed_all(seed)` without a rank, else 42.

    It is in the environment, so that processes started later know it too.
    """
    return _checked(int(os.environ.get(_SEED, 42)) if seed is None else seed)


def next_number(kind: Hashable) -> int:
    """How many of a kind have been numbered since the last `seed_all(seed)` without a rank."""
    _numbered[kind] += 1
    return _numbered[kind] - 1


def numbered_seed(seed: int, number: int) -> int:
    """The seed of the n-th of several things that have the same seed; the first has it itself."""
    return int.from_bytes(_entropy(seed, number)[:8], "little") if number else seed


# What `random.seed` does with an integer, without its look at what else could have been passed.
_seed_python = super(random.Random, random._inst).seed


def rekey(*numbers: int) -> None:
    """Make what python, numpy, torch and CUDA draw next a function of these numbers alone.

    The same as seeding, in some ten microseconds: it can be done for each sample.

    Args:
        *numbers: From -2**63 to 2**64 - 1.
    """
    try:
        packed = struct.pack(f"<{len(numbers)}Q", *numbers)
    except struct.error:  # one of them is negative
        packed = struct.pack(f"<{len(numbers)}Q", *(number % 2**64 for number in numbers))
    words = struct.unpack("<QQQ", hashlib.blake2b(packed, digest_size=24).digest())
    _seed_python(words[0])
    random._inst.gauss_next = None  # type: ignore[attr-defined]
    np.random.seed(words[1] % 2**32)
    word = words[2] >> 1  # so that `torch.tensor(torch.initial_seed())` holds it
    torch.default_generator.manual_seed(word)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for generator in torch.cuda.default_generators:
            generator.manual_seed(word)


def rng_state() -> dict[str, Any]:
    """The state of python's, numpy's, torch's and the GPUs' generators, of this process.

    >>> state = rng_state()
    >>> first = random.random(), torch.rand(1)
    >>> set_rng_state(state)
    >>> first == (random.random(), torch.rand(1))
    True

    Plain values and tensors: `make_checkpoint(..., rng=rng_state())` stores them, those of all
    ranks with `rng=distributed.all_gather(rng_state())`.
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
    """Put back what `rng_state` returned.

    >>> set_rng_state(rng_state())

    Raises:
        KeyError: Not a state of `rng_state`.
        ValueError: There are fewer GPUs than the state has.
    """
    if len(state["cuda"]) > torch.cuda.device_count():
        raise ValueError(
            f"the state has the generators of {len(state['cuda'])} GPUs, and there are "
            f"{torch.cuda.device_count()} here"
        )
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, words, *rest = state["numpy"]
    np.random.set_state((kind, words.numpy(), *rest))
    torch.set_rng_state(state["torch"])
    for index, generator in enumerate(state["cuda"]):
        torch.cuda.set_rng_state(generator, index)


@contextmanager
def isolated_rng() -> Iterator[None]:
    """Leave all generators, at the end of a block, as they were at its beginning.

    >>> with isolated_rng():
    ...     noise = torch.randn(3)
    """
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


def _checked(seed: int) -> int:
    seed = operator.index(seed)  # numpy's integers too
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; expected an integer from 0 to 2**64 - 1")
    return seed


def _entropy(*numbers: int) -> bytes:
    """32 bytes, different for every tuple of numbers."""
    return hashlib.blake2b(repr([int(n) for n in numbers]).encode(), digest_size=32).digest()


def _seed_from(entropy: bytes) -> None:
    # Torch gets 63 bits, which its tensors hold, python and numpy 96 each: with numpy's usual 32,
    # some of 400,000 streams would be equal.
    torch.manual_seed(int.from_bytes(entropy[:8], "little") >> 1)
    random.seed(int.from_bytes(entropy[8:20], "little"))
    np.random.seed(np.frombuffer(entropy[20:], dtype="<u4"))
