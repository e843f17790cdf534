"""Clipping a window is clipping the big batch's gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from batteries import accumulate, distributed
from batteries.training import StepPolicy, Throughput

WRAPPERS: dict[str, Any] = {
    "bare": lambda model: model,
    "DDP": DistributedDataParallel,
    "FSDP2": fully_shard,
    # One part stays whole: its gradients are plain tensors, those of the others DTensors.
    "FSDP2 of a part": lambda model: fully_shard(model, ignored_params={*model[2].parameters()}),
}
CASES = [(None, 0.25), (2.0**16, 0.25), (2.0**16, math.inf)]  # a scale, and the largest norm


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=generator)  # rank, place, rows
    return x, 3 * torch.randn(2, 3, 4, 3, dtype=torch.float64, generator=generator)


def whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def clipped(wrapper: str, scale: float | None, max_norm: float) -> tuple[Tensor, list[Tensor]]:
    """The norm, and the gradients that a step sees."""
    model = WRAPPERS[wrapper](network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale else None
    x, y = samples()
    if wrapper == "bare":
        batches = [*zip(x.flatten(0, 1), y.flatten(0, 1), strict=True)]
    else:
        batches = [*zip(x[distributed.rank()], y[distributed.rank()], strict=True)]
    for (inputs, targets), window in accumulate(batches, model, len(batches), scaler=scaler):
        with window:
            window.backward((model(inputs) - targets).square().mean())
        if wrapper == "FSDP2 of a part":  # nobody shares the gradients of what stays whole
            for p in model[2].parameters():
                if window.closed:
                    p.grad = distributed.all_reduce(p.grad, "mean")
    norm = window.clip(optimizer, max_norm)
    assert torch.equal(window.clip(optimizer, math.inf) < norm, torch.tensor(max_norm < 1))
    seen = [whole(p.grad).clone() for p in model.parameters()]
    assert window.step(optimizer)
    return norm, seen


def all_clipped(wrappers: list[str]) -> list[tuple[float | None, float, Tensor, list[Tensor]]]:
    mixed = "FSDP2 of a part"  # which torch's scaler cannot unscale
    cases = [(w, *case) for w in wrappers for case in CASES if not (w == mixed and case[0])]
    return [(*case[1:], *clipped(*case)) for case in cases]


def test_the_norm_of_the_big_batch() -> None:
    """Norm and gradients are those of clip_grad_norm_, with and without a scaler, on all ranks."""
    x, y = samples()
    bare, *others = WRAPPERS
    for found in [all_clipped([bare]), *run_ranks(all_clipped, others)]:
        for _, max_norm, norm, seen in found:
            model = network()
            (model(x) - y).square().mean().backward()
            expected = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            assert norm.item() == pytest.approx(expected.item(), rel=1e-12)
            for one, p in zip(seen, model.parameters(), strict=True):
                torch.testing.assert_close(one, p.grad, rtol=1e-9, atol=1e-15)


def test_two_optimizers_of_one_scaler() -> None:
    """The scaler is updated behind all of them; to step them one by one after clip is an error."""
    model, scaler = network(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizers = [torch.optim.SGD(part.parameters(), lr=1.0) for part in (model[0], model[2])]
    [(x, window)] = accumulate([torch.ones(4, 5).double()], model, scaler=scaler)
    window.backward(model(x).square().mean())
    for optimizer in optimizers:
        window.clip(optimizer, math.inf)
    expected = [p - p.grad for p in model.parameters() if p.grad is not None]
    with pytest.raises(RuntimeError, match=r"window\.step\(first, second\)"):
        window.step(optimizers[0])
    assert window.step(*optimizers)
    assert all(map(torch.equal, model.parameters(), expected))


def test_where_clip_has_no_place() -> None:
    """In the middle of a window, and for scaled gradients without their optimizer, it says so."""
    model, scaler = network(), torch.amp.GradScaler("cpu")
    batches = [torch.ones(4, 5).double()] * 2
    for x, window in accumulate(batches, model, 2, scaler=scaler):
        window.backward(model(x).mean())
        if not window.closed:
            with pytest.raises(RuntimeError, match="in the middle of a window"):
                window.clip(model.parameters(), 1.0)
            with pytest.raises(RuntimeError, match="step was called in the middle of a window"):
                window.step(torch.optim.SGD(model.parameters()))
    with pytest.raises(TypeError, match="pass the optimizer"):
        window.clip(model.parameters(), 1.0)


def test_what_is_clipped() -> None:
    """One tensor is clipped as a list of it is; a norm that is negative or NaN is refused."""
    model = nn.Linear(2, 1, bias=False)
    [(x, window)] = accumulate([torch.ones(4, 2)], model)
    window.backward(100 * model(x).mean())
    assert window.clip(model.weight, 1.0).item() == pytest.approx(100 * math.sqrt(2))
    assert model.weight.grad is not None
    assert model.weight.grad.norm().item() == pytest.approx(1)
    for wrong in (-1.0, math.nan):
        with pytest.raises(ValueError, match=f"max_norm is {wrong}; expected 0 or more"):
            window.clip(model.parameters(), wrong)
    other: Any
    for other in (model, None, 3):
        with pytest.raises(
            TypeError, match=r"(?s)clip got .*; expected an optimizer, or parameters"
        ):
            window.clip(other, 1.0)
    for other in ([torch.optim.SGD(model.parameters())], model):
        with pytest.raises(TypeError, match=r"(?s)step got .*; expected optimizers: "):
            window.step(other)
    with pytest.raises(TypeError, match=r"the loss is 0\.5; expected a tensor"):
        window.backward(0.5)  # type: ignore[arg-type]


@pytest.mark.gpu
def test_no_waiting_on_a_gpu() -> None:
    """Clipping and measuring let the GPU run on: only a policy's decision waits for it."""
    model = network().float().cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda")
    throughput = Throughput()
    batches = [torch.ones(4, 5, device="cuda")] * 3
    for x, window in throughput.watch(accumulate(batches, model, scaler=scaler)):
        window.backward(model(x).mean())
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            norm = window.clip(optimizer, 0.1)
            throughput.update(4)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert StepPolicy(scaler=scaler).accepts(norm) == window.step(optimizer)
        optimizer.zero_grad()
