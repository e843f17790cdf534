"""The tools of a training step on models whose parameters are DTensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from batteries import accumulate, distributed
from batteries.scoreboard import first_difference
from batteries.training import log_checksums, lr_range_test


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def divided(**options: Any) -> Any:
    model = network()
    fully_shard(model[0], **options)
    return fully_shard(model, **options)


def whole(tensors: Any) -> list[Tensor]:
    return [tensor.full_tensor().detach().clone() for tensor in tensors]


def gradients(model: nn.Module) -> list[Tensor]:
    found = whole(parameter.grad for parameter in model.parameters())
    model.zero_grad()
    return found


def in_sync(train: Callable[..., Any]) -> list[Any]:
    results = run_ranks(train)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def leave_open(model: nn.Module, x: Tensor) -> None:
    for _, window in accumulate([x] * 3, model, 3):
        with window:
            window.backward(100 * model(x).sum())
        if window.weight:
            break
    model.zero_grad()


def leave_a_window() -> None:
    """Backward passes after a window that the loop has left open."""
    x, plain = torch.ones(4, 5), network()
    plain(x).square().mean().backward()
    expected = [parameter.grad for parameter in plain.parameters()]
    half = MixedPrecisionPolicy(reduce_dtype=torch.float64)  # these are added up elsewhere
    for model in (divided(), divided(mp_policy=half)):
        leave_open(model, x)
        for _, window in accumulate([x] * 2, model, 2):
            with window:
                window.backward(model(x).square().mean())
        torch.testing.assert_close(gradients(model), expected)
        leave_open(model, x)
        model(x).square().mean().backward()
        torch.testing.assert_close(gradients(model), expected)


def test_a_window_that_is_left() -> None:
    """Gradients of a window that was not closed are in no later step, and ranks share again."""
    in_sync(leave_a_window)


def measure_after_an_evaluation() -> Any:
    """FSDP2 leaves the outermost module whole after a forward pass alone."""
    model, x = divided(), torch.ones(4, 5)
    optimizer = torch.optim.AdamW(model.parameters())
    before = whole(model.parameters())
    model(x).sum().backward()
    log_checksums("one", 1, model)
    model.eval()(x)
    log_checksums("other", 1, model)

    def step() -> Tensor:
        loss: Tensor = model(torch.rand(4, 5)).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss

    model(x)
    lr_range_test(step, model, optimizer, steps=5)
    torch.testing.assert_close(whole(model.parameters()), before, rtol=0, atol=0)
    assert not optimizer.state
    return first_difference("one", "other") if distributed.is_main() else None


def test_after_an_evaluation() -> None:
    """Checksums are those of the same model, and a range test leaves no trace."""
    [found, _] = in_sync(measure_after_an_evaluation)
    assert (found.step, found.equal) == (None, 1)


def overflow_on_one_rank() -> tuple[bool, float, list[float]]:
    mesh = init_device_mesh("cpu", (2,))
    model = nn.ParameterList(
        nn.Parameter(distribute_tensor(torch.ones(2), mesh, [placement]))
        for placement in (Replicate(), Shard(0))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    [(_, window)] = accumulate([torch.ones(1)], model, scaler=scaler)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    if distributed.rank() == 1:
        model[1].grad._local_tensor.fill_(math.inf)
    stepped = window.step(optimizer)
    return stepped, scaler.get_scale(), torch.cat(whole(model.parameters())).tolist()


def test_an_overflow_of_one_rank() -> None:
    """A gradient that overflows in one rank's part is overflow for all: none steps."""
    assert in_sync(overflow_on_one_rank) == [(False, 4.0, [1.0] * 4)] * 2
