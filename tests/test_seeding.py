from __future__ import annotations

import os
import random
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from batteries import (
    distributed,
    isolated_rng,
    rng_state,
    save_checkpoint,
    seed_all,
    seed_worker,
    set_rng_state,
)
from batteries._seeding import _entropy, rekey
from batteries.checkpoint import read_checkpoint

Draws = tuple[float, float, float]


def draw() -> Draws:
    return random.random(), np.random.random(), torch.rand((), dtype=torch.float64).item()


class Noise(Dataset[Draws]):
    """Each sample is what the generators draw for it."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Draws:
        return draw()


def unchanged(sample: Draws) -> Draws:
    return sample


def epoch_draws(init: object, base_seed: int, context: str = "fork") -> list[Draws]:
    loader = DataLoader(
        Noise(),
        num_workers=2,
        batch_size=None,
        collate_fn=unchanged,  # type: ignore[arg-type]
        worker_init_fn=init,  # type: ignore[arg-type]
        generator=torch.Generator().manual_seed(base_seed),
        multiprocessing_context=context,
    )
    return list(loader)


@pytest.mark.parametrize("rank", [None, 3])
def test_same_seed_same_draws(rank: int | None) -> None:
    """The same seed gives the same draws of python, numpy and torch."""
    seed_all(7, rank=rank)
    first = draw()
    seed_all(7, rank=rank)
    assert draw() == first
    seed_all(8, rank=rank)
    assert not set(draw()) & set(first)


def test_the_seed_itself() -> None:
    """Without a rank every library gets the number itself."""
    seed_all(7)
    expected = random.Random(7).random(), np.random.RandomState(7).random_sample()
    assert torch.initial_seed() == 7
    assert draw()[:2] == expected


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**32, 2**64 - 1])
def test_large_seeds(seed: int) -> None:
    """Any seed of 64 bits will do."""
    seed_all(seed)
    assert torch.initial_seed() == seed


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range(seed: int) -> None:
    """A seed out of range is refused with the range."""
    with pytest.raises(ValueError, match=rf"seed is {seed}; expected an integer from 0 to 2\*\*64"):
        seed_all(seed)


@pytest.mark.parametrize("deterministic", [True, False])
def test_algorithms(deterministic: bool) -> None:
    """Deterministic algorithms and benchmarking are never on together."""
    seed_all(deterministic=deterministic)
    assert torch.backends.cudnn.deterministic is deterministic
    assert torch.backends.cudnn.benchmark is not deterministic
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert torch.is_deterministic_algorithms_warn_only_enabled() is deterministic
    if deterministic:
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")


def seed_twice() -> tuple[Tensor, Draws]:
    seed_all(42)
    weight = nn.Linear(4, 4).weight.detach()
    seed_all(42, rank=distributed.rank())
    return weight, draw()


def test_ranks_start_alike_and_draw_apart() -> None:
    """Ranks make identical weights before the second call and draw different numbers after it."""
    (first, draws), (second, other_draws) = run_ranks(seed_twice)
    assert first.equal(second)
    assert not set(draws) & set(other_draws)


def test_no_two_streams_are_equal() -> None:
    """64 ranks x 64 workers x 100 epochs: no two streams share a seed of any library."""
    bases = torch.randint(2**62, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    seeds = [
        _entropy(base, rank, worker, worker)
        for base in bases
        for rank in range(64)
        for worker in range(64)
    ]
    for library in (slice(0, 8), slice(8, 20), slice(20, 32)):
        assert len({seed[library] for seed in seeds}) == 64 * 64 * 100


@pytest.mark.parametrize("init", [seed_all, seed_worker, partial(seed_all, deterministic=False)])
def test_workers_differ(init: object) -> None:
    """Every worker and every epoch draws its own numbers from each library."""
    draws = epoch_draws(init, base_seed=1) + epoch_draws(init, base_seed=2)
    assert len({number for sample in draws for number in sample}) == 3 * 16


def test_worker_streams_repeat() -> None:
    """The same base seed gives the same numbers again, by both names."""
    assert epoch_draws(seed_all, base_seed=1) == epoch_draws(seed_worker, base_seed=1)


def loader_draws(context: str) -> list[Draws]:
    return epoch_draws(seed_all, base_seed=1, context=context)


@pytest.mark.parametrize("context", ["fork", "forkserver"])
def test_workers_of_ranks_differ(context: str) -> None:
    """Workers of ranks that were seeded alike draw different numbers."""
    first, second = run_ranks(loader_draws, context)
    assert not {x for sample in first for x in sample} & {x for sample in second for x in sample}


def test_rank_of_workers_without_a_launcher() -> None:
    """Where no launcher says the rank, `rank=` in a worker_init_fn does."""
    draws = [epoch_draws(partial(seed_all, rank=rank), base_seed=1) for rank in (0, 1)]
    assert not {x for sample in draws[0] for x in sample} & {x for s in draws[1] for x in s}


def test_kinds_of_seeds() -> None:
    """Numpy's integers are seeds; what is no integer is refused before anything is seeded."""
    seed_all(np.int64(3))
    assert torch.initial_seed() == 3
    with pytest.raises(TypeError, match="float"):
        seed_all(1.5)  # type: ignore[arg-type]
    assert torch.initial_seed() == 3


def reseeding_init(worker_id: int) -> None:
    seed_all(1000 + worker_id)


def test_own_worker_init_functions() -> None:
    """A worker_init_fn that calls seed_all with numbers of its own gets new streams each epoch."""
    assert not set(epoch_draws(reseeding_init, 1)) & set(epoch_draws(reseeding_init, 2))


def test_seed_worker_outside_a_worker() -> None:
    """Outside a worker, seed_worker says where it belongs."""
    with pytest.raises(RuntimeError, match="pass it as worker_init_fn=seed_worker"):
        seed_worker(0)


def test_states_of_generators() -> None:
    """A state goes through a checkpoint and back, and the generators draw the same again."""
    draws: list[Any] = [draw, np.random.randn]
    np.random.randn()  # half of a pair is kept
    save_checkpoint({"rng": rng_state()}, "a.pth")
    first = [draw() for draw in draws]
    set_rng_state(read_checkpoint("a.pth")["rng"])
    with pytest.raises(
        KeyError, match=r"the state has no 'cuda', 'numpy', .*what rng_state returns"
    ):
        set_rng_state({"python": ()})
    assert [draw() for draw in draws] == first


def test_isolated_rng() -> None:
    """What is drawn or seeded in the block changes nothing after it, though it raises."""
    with suppress(KeyError), isolated_rng():
        expected = torch.rand(3)
        seed_all(5)
        raise KeyError
    assert torch.equal(torch.rand(3), expected)


def test_keys_do_not_meet() -> None:
    """Many keys give as many streams, to each generator, whatever was drawn before."""
    draws = set()
    for epoch in range(20):
        for sample in range(200):
            rekey(42, epoch, sample)
            draws |= set(draw())
    assert len(draws) == 3 * 20 * 200


def test_seeds_fit_into_tensors() -> None:
    """`torch.tensor(torch.initial_seed())` works behind any key, on any rank."""
    for number in range(20):
        rekey(2, 42, number)
        torch.tensor(torch.initial_seed())
        seed_all(number, rank=1)
        torch.tensor(torch.initial_seed())
