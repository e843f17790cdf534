"""What is tried before training leaves no trace, and finds the same on all ranks."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from torch import Tensor, nn

from batteries import distributed
from batteries._seeding import rng_state
from batteries.training import BatchSize, LearningRates, find_batch_size, lr_range_test


def out_of_memory_above(limit: int, error: Exception) -> Callable[[int], None]:
    def step(batch_size: int) -> None:
        random.random(), np.random.rand(), torch.rand(1)
        if batch_size > limit:
            raise error

    return step


@pytest.mark.parametrize(
    ("start", "limit", "expected"), [(64, 64, (64, 1)), (100, 13, (10, 10)), (6, 1, (1, 6))]
)
def test_the_effective_size_stays(start: int, limit: int, expected: tuple[int, int]) -> None:
    """The size is a part of the effective one, and generators are what they were."""
    before = torch.initial_seed(), str(rng_state())
    found = find_batch_size(out_of_memory_above(limit, torch.OutOfMemoryError("...")), start)
    assert found == expected
    assert found.batch_size * found.accumulation_steps == start
    assert (torch.initial_seed(), str(rng_state())) == before


def allocate(batch_size: int) -> None:
    torch.empty(batch_size, 2**50, dtype=torch.uint8)


def sizes_of_ranks() -> tuple[BatchSize, str]:
    rank = distributed.rank()
    found = find_batch_size(out_of_memory_above([40, 5][rank], MemoryError()), 32)
    wrong = ValueError(f"of rank {rank}") if rank else MemoryError()
    with pytest.raises(ValueError, match="of rank 1") as told:
        find_batch_size(out_of_memory_above(0, wrong), 4)
    return found, str(told.value)


def test_ranks_agree_on_a_size() -> None:
    """The rank with the least memory decides, and another error of one is raised on all."""
    assert run_ranks(sizes_of_ranks) == [((4, 8), "of rank 1")] * 2


def test_nothing_fits() -> None:
    """Real failures to allocate are known as such; where one sample does not fit, it says so."""
    with pytest.raises(RuntimeError, match="not even a batch of 1 fits"):
        find_batch_size(allocate, 2)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        find_batch_size(lambda n: torch.ones(n, 2) @ torch.ones(3, 3), 2)


def bits(*objects: Any) -> list[Any]:
    """All tensors, and what else there is, in an order."""
    found: list[Any] = []
    for value in objects:
        if isinstance(value, Tensor):
            found.append((value.dtype, value.detach().clone().view(-1).tolist()))
        elif isinstance(value, dict):
            found += [*value, bits(*value.values())]
        elif isinstance(value, list | tuple):
            found.append(bits(*value))
        else:
            found.append(value)
    return found


@pytest.mark.parametrize("taken", [0, 3])
@pytest.mark.parametrize("ends", [False, True], ids=["", "step raises"])
def test_a_range_test_leaves_no_trace(taken: int, ends: bool) -> None:
    """Model, optimizer, gradients, scheduler's rates and generators are as before, to the bit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1))
    model[0].bfloat16()
    groups = [{"params": model[0].parameters(), "lr": torch.tensor(0.01)}]
    groups += [{"params": model[1:].parameters(), "lr": 0.001}]
    optimizer = torch.optim.AdamW(groups, capturable=False, foreach=False)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    calls = [0]

    def step() -> Tensor:
        calls[0] += 1
        if ends and calls[0] > taken + 5:
            raise KeyError("no more")
        x = torch.randn(6, 4).bfloat16()
        loss: Tensor = model[1:](model[0](x).float()).square().mean()
        optimizer.zero_grad(set_to_none=calls[0] % 2 == 0)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss

    for _ in range(taken):
        step()
        scheduler.step()

    def everything() -> list[Any]:
        states = {name: dict(optimizer.state[p]) for name, p in model.named_parameters()
                  if p in optimizer.state}  # fmt: skip
        rest = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        grads = [p.grad for p in model.parameters()]
        return bits(model.state_dict(), states, rest, grads, scheduler.state_dict(), rng_state())

    model[1].eval()
    before, mode, held = everything(), model[1].training, optimizer.param_groups[0]["lr"]
    if ends:
        with pytest.raises(KeyError, match="no more"):
            lr_range_test(step, model, optimizer, steps=10)
    else:
        lr_range_test(step, model, optimizer, steps=10, diverged=1e9)
    assert repr(everything()) == repr(before)
    assert model[1].training == mode
    assert optimizer.param_groups[0]["lr"] is held
    assert calls[0] > taken


def rates_of_ranks() -> tuple[list[float], list[float]]:
    """The loss of rank 1 alone diverges."""
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)

    def step() -> float:
        rate = optimizer.param_groups[0]["lr"]
        return 1.0 if distributed.rank() == 0 or rate < 0.05 else float("inf")

    model = nn.ParameterList([parameter])
    found = lr_range_test(step, model, optimizer, lowest=0.01, highest=1.0, steps=3)
    return found.lr, found.loss


def test_ranks_end_together() -> None:
    """The mean of the ranks' losses ends the test, on all of them."""
    assert run_ranks(rates_of_ranks) == [([0.01], [1.0])] * 2


def test_the_suggestion() -> None:
    """Of a quadratic it is below the rate at which descent diverges, and the figure shows it."""
    parameter = nn.Parameter(torch.tensor([3.0, -2.0]))
    curvature = torch.tensor([1.0, 10.0])  # diverges above 2 / 10
    optimizer = torch.optim.SGD([parameter], lr=1.0)

    def step() -> Tensor:
        loss: Tensor = (curvature * parameter.square()).sum() / 2
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss

    model = nn.ParameterList([parameter])
    found = lr_range_test(step, model, optimizer, lowest=1e-5, steps=200)
    assert len(found.lr) < 200
    assert 0.001 < found.suggestion < 0.2
    assert np.asarray(found.plot().axes[0].lines[0].get_xdata())[0] == found.lr[0]
    with pytest.raises(ValueError, match="expected rates that rise"):
        lr_range_test(step, model, optimizer, lowest=1.0, highest=0.1)
    with pytest.raises(ValueError, match="expected rates that rise"):
        lr_range_test(step, model, optimizer, highest=float("inf"))
    for wrong in (0, float("nan")):  # the test would not end early
        with pytest.raises(ValueError, match=r"diverged is .*; expected 1 or more"):
            lr_range_test(step, model, optimizer, diverged=wrong)
    assert LearningRates([1.0], [1.0]).suggestion == 0.1


def test_buffers_that_come_in_a_step() -> None:
    """A buffer that a module registers in a step of the range test is gone after it."""

    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self) -> Tensor:
            self.register_buffer("late", torch.ones(1))
            return self.weight.sum()

    model = Late()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lr_range_test(lambda: float(model().detach()), model, optimizer, steps=3)
    assert list(model.state_dict()) == ["weight"]
    with pytest.raises(TypeError, match="step returned None; expected the loss"):
        lr_range_test(lambda: None, model, optimizer, steps=3)  # type: ignore[arg-type,return-value]
    with pytest.raises(
        TypeError, match=r"the loss of step is a tensor of shape \(2,\); expected one"
    ):
        lr_range_test(lambda: torch.ones(2), model, optimizer, steps=3)
    with pytest.raises(TypeError, match=r"steps is 2\.5; expected a whole number"):
        lr_range_test(lambda: 1.0, model, optimizer, steps=2.5)  # type: ignore[arg-type]
