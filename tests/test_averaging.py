"""Averages of weights: EMA and SWA, of files, and batch norm's statistics for them."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from torch import Tensor, nn
from torch.optim import swa_utils

from batteries import (
    EMA,
    SWA,
    CheckpointError,
    CheckpointManager,
    average_checkpoints,
    distribute,
    distributed,
    load_checkpoint,
    make_checkpoint,
    resume,
    save_checkpoint,
    unwrap,
    update_bn,
)
from batteries.averaging import best_checkpoints, greedy_soup, save_average
from batteries.checkpoint import export_safetensors


def make_model(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(dtype)


def steps(model: nn.Module, number: int, scale: float = 0.1) -> Iterator[int]:
    """Let a model's weights wander, as an optimizer does."""
    for step in range(number):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=scale)
            model(torch.randn(8, 3, dtype=next(model.parameters()).dtype))
        yield step


def weights_of(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().reshape(-1) for p in module.parameters()])


def assert_same(first: nn.Module, second: nn.Module) -> None:
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


# ---------------------------------------------------------------- EMA and SWA


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ema_is_torch_s(dtype: torch.dtype) -> None:
    """The moving average is that of torch's AveragedModel; buffers are the model's own."""
    model = make_model(dtype)
    function = swa_utils.get_ema_multi_avg_fn(0.9)  # type: ignore[no-untyped-call]
    ema, oracle = EMA(model, 0.9), swa_utils.AveragedModel(model, multi_avg_fn=function)
    oracle.update_parameters(model)  # the first one is a copy
    for _ in steps(model, 20):
        ema.update(model)
        oracle.update_parameters(model)
    assert torch.equal(weights_of(ema.module), weights_of(oracle.module))
    torch.testing.assert_close(list(ema.module.buffers()), list(model.buffers()), rtol=0, atol=0)


def test_swa_is_the_mean() -> None:
    """The equal-weight average is the mean of all models, and torch's AveragedModel."""
    model = make_model()
    swa, oracle, seen = SWA(model), swa_utils.AveragedModel(model), []
    for _ in steps(model, 20):
        swa.update(model)
        oracle.update_parameters(model)
        seen.append(weights_of(model))
    torch.testing.assert_close(weights_of(swa.module), torch.stack(seen).mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(weights_of(swa.module), weights_of(oracle.module), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_moves(dtype: torch.dtype) -> None:
    """Steps that are too small for 16 bits add up, as they do in float64."""
    model = nn.Linear(64, 64).to(dtype)
    ema, exact = EMA(model, 0.999), weights_of(model)
    with torch.no_grad():
        model.weight += 1
    for _ in range(200):
        ema.update(model)
        exact = 0.999 * exact + 0.001 * weights_of(model)
    error = (weights_of(ema.module) - exact).abs().max()
    assert error < 0.02 * torch.finfo(dtype).eps / torch.finfo(torch.float16).eps
    torch.testing.assert_close(
        ema.state_dict()["shadows"]["weight"].double().reshape(-1),
        exact[: 64 * 64],
        atol=1e-5,
        rtol=0,
    )
    assert ema.module.weight.dtype == dtype


def test_warmup_pauses_and_delay() -> None:
    """Decay, warmup, `update_every` and `update_after` are what the docstring says."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    averages = {
        "plain": EMA(model, 0.5),
        "warm": EMA(model, 0.5, warmup=True),
        "every": EMA(model, 0.5, update_every=2),
        "after": EMA(model, 0.5, update_after=2),
    }
    found: dict[str, list[float]] = {name: [] for name in averages}
    for step in range(1, 5):
        nn.init.constant_(model.weight, float(step))
        for name, ema in averages.items():
            ema.update(model)
            found[name].append(float(weights_of(ema.module)))
    assert found["plain"] == [0.5, 1.25, 2.125, 3.0625]
    assert found["every"] == [0, 1, 1, 2.5]
    assert found["after"] == [1, 2, 2.5, 3.25]
    expected, value = [], 0.0
    for n in range(1, 5):
        value += (n - value) * (1 - min(0.5, (1 + n) / (10 + n)))
        expected.append(value)
    assert found["warm"] == pytest.approx(expected)


def test_warmup_counts_what_is_taken_in() -> None:
    """With `update_every` and `update_after`, warmup counts the models that are averaged."""
    model = nn.Linear(1, 1, bias=False)
    ema, value = EMA(model, 0.3, warmup=True, update_every=2, update_after=3), 0.0
    for call in range(1, 14):
        nn.init.constant_(model.weight, float(call))
        ema.update(model)
        number, between = divmod(call - 3, 2)
        if call <= 3:
            value = call
        elif not between:
            value += (call - value) * (1 - min(0.3, (1 + number) / (10 + number)))
        assert float(ema.module.weight) == pytest.approx(value)  # type: ignore[arg-type]


def test_frozen_parameters_cost_nothing() -> None:
    """A frozen parameter that nobody writes to is left alone by `update`: its average's too."""
    model = make_model()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    ema: Any = EMA(model, 0.5)
    ema.update(model)
    before = {name: tensor._version for name, tensor in ema.module.named_parameters()}
    ema.update(model)
    moved = [
        name for name, tensor in ema.module.named_parameters() if tensor._version > before[name]
    ]
    assert moved == ["1.weight", "1.bias", "2.weight", "2.bias"]


def test_the_device_of_an_average() -> None:
    """The average lies where it was told to."""
    average = EMA(make_model(), device="meta")
    assert all(tensor.is_meta for tensor in average.module.state_dict().values())


class Versioned(nn.Linear):
    _version = 7

    def get_extra_state(self) -> dict[str, Tensor]:
        return {"seen": torch.tensor([3, 4])}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        assert state["seen"].tolist() == [3, 4]


def test_extra_states_and_versions() -> None:
    """The average has the first file's extra states and module versions: it loads as one file."""
    model = nn.Sequential(Versioned(2, 1))
    for index in range(2):
        save_checkpoint(make_checkpoint("train", index, model), f"{index}.pth")
    average: Any = average_checkpoints(["0.pth", "1.pth"])
    assert average["0._extra_state"]["seen"].tolist() == [3, 4]
    assert average._metadata["0"]["version"] == 7
    model.load_state_dict(average)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("seen", torch.zeros(5, dtype=torch.bool))
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1), persistent=False)
        self.register_buffer("scale", torch.zeros(1))


@pytest.mark.parametrize("buffers", ["copy", "average"])
def test_tied_weights_and_buffers(buffers: Any) -> None:
    """Tied weights stay tied and move once; integers, bools and masks of -inf are copied."""
    model: Any = Tied()
    ema = EMA(model, 0.5, buffers=buffers)
    start = model.embedding.weight.detach().clone()
    with torch.no_grad():
        model.embedding.weight += 1
        model.steps += 7
        model.seen[2] = True
        model.scale += 1
    ema.update(model)
    module: Any = ema.module
    torch.testing.assert_close(module.head.weight, start + 0.5)
    assert module.head.weight is module.embedding.weight
    assert (int(module.steps), int(module.seen.sum())) == (7, 1)
    assert torch.equal(module.mask, model.mask)
    assert float(module.scale) == (0.5 if buffers == "average" else 1)


def test_frozen_and_thawed() -> None:
    """A parameter that was frozen is averaged from the update on in which it is no more."""
    model = make_model()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    ema, exact = EMA(model, 0.5), weights_of(model)
    for step in range(6):
        for parameter in model[0].parameters():
            parameter.requires_grad_(step >= 3)
        with torch.no_grad():
            for parameter in model[0].parameters() if step in (1, 4) else model[2].parameters():
                parameter.add_(1)  # in step 1 a frozen one is written to
        ema.update(model)
        exact = (exact + weights_of(model)) / 2
        torch.testing.assert_close(weights_of(ema.module), exact, atol=1e-6, rtol=0)


def test_replaced_parameters_are_found() -> None:
    """A parameter or module that takes another's place is averaged; other models are refused."""
    model = make_model()
    ema: Any = EMA(model, 0.5)
    ema.update(model)
    before = model[2].weight.detach().clone()
    model[2].weight = nn.Parameter(before + 1)
    ema.update(model)
    torch.testing.assert_close(ema.module[2].weight, before + 0.5)
    model[2] = nn.Linear(4, 2)
    ema.update(model)
    torch.testing.assert_close(
        ema.module[2].weight,
        (before + 0.5 + model[2].weight) / 2,
    )
    model[2] = nn.Linear(4, 3)
    with pytest.raises(
        ValueError, match=r"2.weight is \(3, 4\) in the model but \(2, 4\) in its av"
    ):
        ema.update(model)
    with pytest.raises(ValueError, match=r"the average has 1.weight, the model has not"):
        ema.update(nn.Sequential(nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 2)))


@pytest.mark.parametrize("change", [torch.bfloat16, torch.float64])
def test_models_that_change_their_dtype(change: torch.dtype) -> None:
    """A model that is converted later goes on being averaged in the average's precision."""
    model = make_model()
    ema = EMA(model, 0.5)
    ema.update(model)
    start, target = weights_of(ema.module), weights_of(model.to(change))
    ema.update(model)
    torch.testing.assert_close(weights_of(ema.module), (start + target) / 2, atol=1e-6, rtol=0)


def test_wrapped_models() -> None:
    """DataParallel and compiled models, outside and inside, are averaged by name."""
    model = make_model()
    ema, oracle = EMA(model, 0.5), EMA(model, 0.5)
    first: Any = torch.compile(model[0], backend="eager")
    compiled: Any = torch.compile(model, backend="eager")
    inside = nn.Sequential(first, model[1], model[2])
    for wrapped in (nn.DataParallel(model), compiled, inside):
        with torch.no_grad():
            model[0].weight += 1
        ema.update(wrapped)
        oracle.update(model)
        assert_same(ema.module, oracle.module)
    other = EMA(inside)
    other.load_state_dict(ema.state_dict())
    assert torch.equal(weights_of(other.module), weights_of(ema.module))
    assert list(other.state_dict()["module"]) == list(model.state_dict())


def average_on_ranks() -> dict[str, Any]:
    torch.manual_seed(0)
    model = distribute(nn.Linear(3, 2), "cpu")
    ema, optimizer = EMA(model, 0.5), torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        model(torch.randn(4, 3) + distributed.rank()).sum().backward()
        optimizer.step()
        ema.update(model)
    with ema.swapped(model):
        assert torch.equal(unwrap(model).weight, ema.module.weight)  # type: ignore[arg-type]
    return ema.state_dict()["module"]  # type: ignore[no-any-return]


def test_average_of_ddp() -> None:
    """Each rank of a DDP model has the same average, under the bare model's names."""
    first, second = run_ranks(average_on_ranks)
    assert list(first) == ["weight", "bias"]
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_swapped() -> None:
    """In the block a model predicts as its average; behind it, after an error too, as itself."""
    model = make_model()
    ema = EMA(model, 0.5)
    for _ in steps(model, 5):
        ema.update(model)
    x, before = torch.randn(4, 3), copy.deepcopy(model)
    expected, optimizer = ema.module(x), torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with pytest.raises(KeyError, match="mine"), ema.swapped(model.eval()):  # noqa: PT012
        assert torch.equal(model(x), expected)
        with pytest.raises(RuntimeError, match="make it behind the block, with `ema=ema`"):
            make_checkpoint("train", 1, model, optimizer, ema=ema)
        with pytest.raises(RuntimeError, match="inside of `swapped`"):
            ema.update(model)
        with pytest.raises(RuntimeError, match="inside of `swapped`"), ema.swapped(model):
            pass
        raise KeyError("mine")
    assert_same(model, before)
    make_checkpoint("train", 1, model, optimizer, ema=ema)
    ema.update(model)


def test_no_state_dict_of_a_swapped_part() -> None:
    """In the block the parts of a model give away no state dict, and copies of it do as ever."""
    model = make_model()
    ema = EMA(model, 0.5)
    for _ in steps(model, 2):
        ema.update(model)
    with ema.swapped(model):
        with pytest.raises(RuntimeError, match="make it behind the block"):
            model[0].state_dict()
        copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        for same in copies:
            torch.testing.assert_close(same.state_dict(), ema.module.state_dict())
    for same in copies:
        assert_same(same, ema.module)
        EMA(same).update(same)
    model[0].state_dict()


def test_other_averages_of_a_swapped_model() -> None:
    """Another average takes in no weights of a model, or a part of it, that is swapped."""
    model = make_model()
    ema, whole, part = EMA(model, 0.5), SWA(model), EMA(model[0])
    with ema.swapped(model):
        for average, source in ((whole, model), (part, model[0])):
            with pytest.raises(RuntimeError, match="inside of `swapped`"):
                average.update(source)
        with pytest.raises(RuntimeError, match="inside of `swapped`"), whole.swapped(model):
            pass
    whole.update(model)
    part.update(model[0])


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.history: Tensor = nn.Buffer(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.history = 0.9 * self.history + x.mean(0)
        return x * self.weight


def test_buffers_that_are_replaced_in_the_block() -> None:
    """A buffer that a forward pass replaces in the block is the one that it was, behind it."""
    model = Remembering()
    ema, history = EMA(model, 0.5), model.history
    with ema.swapped(model):
        model(torch.ones(3, 2))
    assert model.history is history
    assert history.tolist() == [0, 0]


def resumed_beside(
    make: Callable[[], nn.Module],
    change: Callable[[Any], object],
    kind: Callable[[nn.Module], EMA | SWA],
) -> list[dict[str, Any]]:
    """The states of an average that goes on, and of one that was saved and put back meanwhile."""
    manager, model = CheckpointManager("runs"), make()
    average = kind(model)
    for _ in range(5):
        change(model)
        average.update(model)
    manager.process(1.0, 1, make_checkpoint("train", 1, model, ema=average))
    again = make()
    other = kind(again)
    resume("runs", again, ema=other)
    for _ in range(5):
        change(model)
        average.update(model)
        other.update(copy.deepcopy(model))
    return [average.state_dict(), other.state_dict()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [lambda model: EMA(model, 0.9, warmup=True), SWA])
def test_a_resumed_average(kind: Callable[[nn.Module], EMA | SWA], dtype: torch.dtype) -> None:
    """An average that was saved and put back goes on as one that never stopped, bit for bit."""
    states = resumed_beside(lambda: make_model(dtype), lambda model: next(steps(model, 1)), kind)
    torch.testing.assert_close(*states, rtol=0, atol=0)


class Observer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("highest", torch.tensor(-torch.inf))
        self.register_buffer("unsaved", torch.zeros(1), persistent=False)


def test_a_resumed_average_of_buffers() -> None:
    """Averages of buffers go on too: of one that began as -inf, and of one that is not saved."""

    def change(model: Any) -> None:
        model.highest.fill_(torch.rand(()))
        model.unsaved.add_(1)

    states = resumed_beside(Observer, change, lambda model: EMA(model, 0.9, buffers="average"))
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert 0 < states[0]["shadows"]["unsaved"] < 10


def test_a_state_that_does_not_fit() -> None:
    """The average of another model is refused, and all objects stay as they were."""
    model = make_model()
    ema = EMA(model)
    save_checkpoint(make_checkpoint("train", 1, nn.Linear(3, 2), ema=EMA(nn.Linear(3, 2))), "a.pth")
    before = copy.deepcopy(ema.state_dict())
    with pytest.raises(
        CheckpointError, match=r"ema_state_dict in a.pth does not fit: .*\s.*0.weight"
    ):
        load_checkpoint("a.pth", ema=ema)
    torch.testing.assert_close(ema.state_dict(), before, rtol=0, atol=0)
    checkpoint = make_checkpoint("train", 1, model, ema=EMA(model))
    save_checkpoint(checkpoint | {"z_state_dict": {}}, "b.pth")
    for _ in steps(model, 1):
        ema.update(model)
    before = copy.deepcopy(ema.state_dict())
    with pytest.raises(CheckpointError, match=r"z_state_dict in b.pth does not fit"):
        load_checkpoint("b.pth", ema=ema, z=torch.optim.SGD(model.parameters(), 0.1))
    torch.testing.assert_close(ema.state_dict(), before, rtol=0, atol=0)


def test_what_an_average_is_given() -> None:
    """Settings that mean nothing are refused."""
    with pytest.raises(ValueError, match=r"decay is 1.5; expected 0 to 1"):
        EMA(make_model(), 1.5)
    with pytest.raises(ValueError, match="update_every is 0; expected 1 or more"):
        EMA(make_model(), update_every=0)
    with pytest.raises(ValueError, match="buffers is 'keep'; expected 'copy' or 'average'"):
        SWA(make_model(), buffers="keep")  # type: ignore[arg-type]


@pytest.mark.gpu
def test_an_average_elsewhere() -> None:
    """A model on a GPU is averaged there, or on the CPU, as it would be on the CPU alone."""
    model, twin = make_model(), make_model().cuda()
    averages = EMA(model, 0.5), EMA(twin, 0.5), EMA(twin, 0.5, device="cpu")
    for _ in steps(model, 5):
        twin.load_state_dict(model.state_dict())
        for average, source in zip(averages, (model, twin, twin), strict=True):
            average.update(source)
    assert next(averages[1].module.parameters()).is_cuda
    assert not next(averages[2].module.parameters()).is_cuda
    for average in averages[1:]:
        torch.testing.assert_close(weights_of(average.module).cpu(), weights_of(averages[0].module))
    with averages[2].swapped(twin):
        torch.testing.assert_close(weights_of(twin).cpu(), weights_of(averages[2].module))


# ---------------------------------------------------------------- batch norm

BATCHES = torch.randn(6, 16, 3, generator=torch.Generator().manual_seed(1)) * 3 + 1


def test_update_bn_is_torch_s() -> None:
    """With batches of one size, the statistics are those of torch's update_bn."""
    model, oracle = make_model(), make_model()
    model[1].momentum = None
    model.train()
    model[0].eval()
    update_bn(model, BATCHES)
    swa_utils.update_bn(BATCHES, oracle)
    torch.testing.assert_close(model.state_dict(), oracle.state_dict())
    assert [part.training for part in model.modules()] == [True, False, True, True]
    assert model[1].momentum is None


class Often(nn.Module):
    """Batch norms that are called twice, for some batches, and never."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.large, self.never = (nn.BatchNorm1d(3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(x) + self.twice(2 * x + 5)
        return self.large(x) if len(x) == 16 else x


def test_each_call_counts() -> None:
    """A batch norm has the mean of its calls, however many there are in a batch, as torch's."""
    model, oracle = Often(), Often()
    model.never(BATCHES[0])
    before = copy.deepcopy(model.never.state_dict())
    update_bn(model, [*BATCHES[:3], BATCHES[3][:0]])
    swa_utils.update_bn(BATCHES[:3], oracle)
    for name in ("twice", "large"):
        found, expected = model.get_submodule(name), oracle.get_submodule(name)
        torch.testing.assert_close(found.state_dict(), expected.state_dict())
    torch.testing.assert_close(model.never.state_dict(), before, rtol=0, atol=0)
    update_bn(model, [*BATCHES[:3], *torch.split(BATCHES[3] + 100, 8)])
    torch.testing.assert_close(model.large.state_dict(), oracle.large.state_dict())


def test_statistics_of_16_bits() -> None:
    """The statistics of a 16-bit model are rounded once, whatever the number of batches."""
    torch.manual_seed(0)
    batches = (torch.randn(500, 16, 3) + 1).bfloat16()
    model = nn.Sequential(nn.BatchNorm1d(3)).bfloat16()
    update_bn(model, batches)
    expected = batches.double().mean((0, 1))
    torch.testing.assert_close(model[0].running_mean.double(), expected, rtol=4e-3, atol=0)


def test_compiled_parts() -> None:
    """A compiled part of a model is not compiled anew, and sees each batch, at each use."""
    graphs, model, oracle = [], make_model(), make_model()

    def backend(graph: Any, inputs: Any) -> Any:  # noqa: ARG001
        graphs.append(graph)
        return graph.forward

    compiled: Any = torch.compile(model[:2], backend=backend)
    whole = nn.Sequential(compiled, model[2])
    for batches in (BATCHES[:2], BATCHES[2:]):
        update_bn(whole, batches)
        swa_utils.update_bn(batches, oracle)
        torch.testing.assert_close(model.state_dict(), oracle.state_dict())
        whole(BATCHES[0])
        oracle(BATCHES[0])
        assert len(graphs) == 1


def numpy_statistics(batches: list[Tensor]) -> tuple[Any, Any]:
    """Mean and variance of the first layer's output, weighted by the samples, in float64."""
    model = make_model(torch.float64)
    hidden = [model[0](batch.double()).detach().numpy() for batch in batches]
    sizes = np.array([len(batch) for batch in batches])
    means = np.stack([values.mean(0) for values in hidden])
    variances = np.stack([values.var(0, ddof=1) for values in hidden])
    return np.average(means, 0, sizes), np.average(variances, 0, sizes)


def ragged(rank: int | None = None) -> list[Tensor]:
    rows = BATCHES.reshape(-1, 3)[:75]
    batches = [*torch.split(rows[:40], 16), *torch.split(rows[40:], 10)]
    return batches if rank is None else [batches[:5], [], batches[5:]][rank]


def norm_on_ranks() -> tuple[Tensor, Tensor, int]:
    model = distribute(make_model(), "cpu")
    update_bn(model, ragged(distributed.rank()))
    norm: Any = unwrap(model)[1]  # type: ignore[index]
    return norm.running_mean, norm.running_var, int(norm.num_batches_tracked)


def test_update_bn_of_ranks() -> None:
    """Three ranks, one without a batch, compute what one process does, the same bits on each."""
    mean, variance = numpy_statistics(ragged())
    for found in run_ranks(norm_on_ranks, world_size=3):
        np.testing.assert_allclose(found[0], mean, rtol=1e-5)
        np.testing.assert_allclose(found[1], variance, rtol=1e-5)
        assert found[2] == len(ragged())
    results = run_ranks(norm_on_ranks, world_size=3)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def fail_on_one_rank() -> Tensor:
    model = make_model()
    before = copy.deepcopy(model.state_dict())

    def loader() -> Iterator[Tensor]:
        yield BATCHES[0]
        if distributed.rank() == 1:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        update_bn(model, loader())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    return torch.tensor(1)


def test_update_bn_that_fails() -> None:
    """An error on one rank is raised on all, and the model has its old statistics."""
    assert run_ranks(fail_on_one_rank) == [1, 1]


class ByName(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm1d(3), nn.Dropout(0.9)
        self.forward = getattr(self, kind, self.forward)  # type: ignore[method-assign]

    def of_a_dict(self, batch: dict[str, Tensor]) -> Tensor:
        return self.norm(self.dropout(batch["x"]))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.dropout(x))  # type: ignore[no-any-return]

    def of_anything(self, **batch: Tensor) -> Tensor:
        return self.norm(self.dropout(batch["x"]))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict", "of_a_dict", "of_anything"])
def test_update_bn_of_any_batch(kind: str) -> None:
    """Tensors, tuples and dicts reach the model, with dropout off."""
    model = ByName(kind)
    batch = {"tensor": BATCHES[0], "tuple": (BATCHES[0], torch.zeros(16))}.get(
        kind, {"scale": torch.tensor(2.0), "y": 0.5, "x": BATCHES[0]}
    )
    update_bn(model, [batch])
    torch.testing.assert_close(model.norm.running_mean, BATCHES[0].mean(0))


def test_update_bn_without_batches() -> None:
    """A loader without batches is an error, and a model without batch norm is left alone."""
    with pytest.raises(ValueError, match="the loader has no batches, on any rank"):
        update_bn(make_model(), [])
    update_bn(nn.Linear(2, 1), [])


# ---------------------------------------------------------------- files


def save_models(number: int, dtype: torch.dtype = torch.float32, **options: Any) -> list[Path]:
    """Checkpoints of a model that wanders, with an optimizer that has a memory."""
    model, paths = make_model(dtype), []
    optimizer = torch.optim.AdamW(model.parameters())
    for epoch in steps(model, number, **options):
        model(torch.ones(4, 3, dtype=dtype)).sum().backward()
        optimizer.step()
        paths.append(Path(f"exp_{epoch}.pth"))
        checkpoint = make_checkpoint(
            "train", epoch, model, optimizer, metrics={"loss": 1 / (epoch + 1)}
        )
        save_checkpoint(checkpoint, paths[-1])
    return paths


def exact_average(paths: list[Path], weights: list[float]) -> dict[str, Any]:
    states = [torch.load(path)["model_state_dict"] for path in paths]
    return {
        key: np.average([state[key].double().numpy() for state in states], 0, weights)
        for key in states[0]
    }


@pytest.mark.parametrize("weights", [None, [1, 1, 1, 1, 1], [0, 0.5, 2, 0, 1]])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_average_of_files(dtype: torch.dtype, weights: list[float] | None) -> None:
    """The average is numpy's in float64, to the precision of the dtype."""
    paths = save_models(5, dtype)
    average = average_checkpoints(paths, weights)
    for key, expected in exact_average(paths, weights or [1.0] * 5).items():
        if key == "1.num_batches_tracked":
            assert average[key] == max(torch.load(p)["model_state_dict"][key] for p in paths)
        else:
            tolerance = 8 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
            tolerance += torch.finfo(dtype).eps * (dtype.itemsize < 4)
            assert average[key].dtype == dtype
            np.testing.assert_allclose(average[key].double(), expected, tolerance, tolerance)
    model = make_model(dtype)
    model.load_state_dict(average)


KINDS: dict[str, Tensor] = {
    "float": torch.randn(300_000),
    "half": torch.randn(40, 7).half(),
    "brain": torch.randn(1000, 500).bfloat16(),
    "double": torch.randn(5, dtype=torch.float64),
    "complex": torch.randn(5, dtype=torch.complex64),
    "mask": torch.full((3, 3), -torch.inf).triu(1),
    "large": torch.full((3,), 3e38),
    "strided": torch.randn(6, 4).t(),
    "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "slice": torch.arange(10.0)[3:7],
    "scalar": torch.tensor(7),
    "table": torch.arange(12).reshape(3, 4),
    "flag": torch.tensor([True, False]),
    "minus zero": torch.tensor([-0.0, 1.0, 0.0]),
    "pruned": torch.randn(1000) * torch.tensor([0.0, 1.0]).repeat(500),
    "quarter": torch.tensor([1.5, -0.0, 0.0, -3.0]).to(torch.float8_e4m3fn),
    "minus zero, complex": torch.complex(torch.tensor([-0.0, -0.0]), torch.tensor([1.0, -0.0])),
    "empty": torch.empty(0, 3),
}


def bits(tensor: Tensor) -> Any:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("weights", [None, [0.1, 0.2, 0.3, 0.1, 0.1, 0.1, 0.7]])
@pytest.mark.parametrize("write", [save_checkpoint, torch.save])
def test_copies_of_one_model(write: Callable[..., None], weights: list[float] | None) -> None:
    """The average of copies is the model, bit for bit, in every dtype, layout and kind of file."""
    state = dict(KINDS, tied=KINDS["float"])
    for index in range(7):
        write({"epoch": index, "model_state_dict": state}, f"{index}.pth")
    average = average_checkpoints([f"{index}.pth" for index in range(7)], weights)
    assert list(average) == list(state)
    for key, tensor in state.items():
        assert average[key].stride() == tensor.stride()
        assert bits(average[key]) == bits(tensor), key
    assert average["tied"].data_ptr() == average["float"].data_ptr()


@pytest.mark.parametrize("threads", [2, 3, 100])
def test_any_number_of_threads(threads: int) -> None:
    """The average has the same bits on any number of threads, and damage is found."""
    for index in range(3):
        tensors = {f"{i}": torch.randn(1000 * i + 1) for i in range(60)} | {
            "w": torch.randn(900_000)
        }
        save_checkpoint({"rest": torch.zeros(99), "model_state_dict": tensors}, f"{index}.pth")
    expected = average_checkpoints(["0.pth", "1.pth", "2.pth"])
    torch.set_num_threads(threads)
    try:
        found = average_checkpoints(["0.pth", "1.pth", "2.pth"])
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert list(found) == list(expected)
        damaged = bytearray(Path("2.pth").read_bytes())
        damaged[len(damaged) // 2] ^= 1
        Path("2.pth").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"2.pth is damaged"):
            average_checkpoints(["0.pth", "1.pth", "2.pth"])
    finally:
        torch.set_num_threads(1)


def test_other_layouts_and_forms() -> None:
    """Files with other strides, bare state dicts and safetensors are averaged by name."""
    first, second = ({"a": torch.randn(4, 6), "b": torch.randn(9)} for _ in range(2))
    save_checkpoint({"model_state_dict": first}, "0.pth")
    save_checkpoint(
        {"model_state_dict": {"b": second["b"], "a": second["a"].t().contiguous().t()}}, "1.pth"
    )
    torch.save(dict(reversed(second.items())), "2.pth")
    export_safetensors("0.pth", "3.safetensors")
    expected = {key: (first[key] + second[key]) / 2 for key in first}
    for paths in (["0.pth", "1.pth", "2.pth", "3.safetensors"], ["3.safetensors", "1.pth"]):
        found = average_checkpoints(paths)
        torch.testing.assert_close({key: found[key] for key in expected}, expected)


@pytest.mark.parametrize("seed", range(5))
def test_any_layout(seed: int) -> None:
    """However the tensors of each file lie and share their memory, the average is torch's."""
    generator = np.random.default_rng(seed)
    states = [{f"{i}": torch.randn(5 + i, 300, 2) for i in range(6)} for _ in range(4)]
    for index, state in enumerate(states):
        keys = [str(i) for i in generator.permutation(6)]
        flat = torch.cat([state[key].reshape(-1) for key in keys])
        views = torch.split(flat, [state[key].numel() for key in keys])
        laid = {key: view.view_as(state[key]) for key, view in zip(keys, views, strict=True)}
        for key in keys[: generator.integers(6)]:
            laid[key] = state[key].permute(2, 0, 1).contiguous().permute(1, 2, 0)
        save_checkpoint({"model_state_dict": laid}, f"{index}.pth")
    export_safetensors("3.pth", "3.safetensors")
    found = average_checkpoints(["0.pth", "1.pth", "2.pth", "3.safetensors"], [1, 2, 3, 4])
    for key, value in found.items():
        exact = sum(weight * state[key].double() for weight, state in enumerate(states, start=1))
        torch.testing.assert_close(value.double(), exact / 10, atol=1e-6, rtol=0)


def test_columns_of_one_matrix() -> None:
    """Tensors that lie between each other's rows are averaged, and what is left there is zero."""
    matrices = [torch.randn(50, 9), torch.randn(50, 9)]
    for index, matrix in enumerate(matrices):
        state = {"query": matrix[:, :3], "key": matrix[:, 3:6]}
        torch.save({"model_state_dict": state}, f"{index}.pth")
    average = average_checkpoints(["0.pth", "1.pth"])
    mean = (matrices[0] + matrices[1]) / 2
    mean[:, 6:] = 0
    torch.testing.assert_close(average["query"].as_strided((50, 9), (9, 1)), mean)
    assert average["key"].data_ptr() == average["query"].data_ptr() + 12


def test_tensors_at_odd_places() -> None:
    """Tensors of safetensors that are not aligned in their file are averaged too."""
    weight = torch.randn(300_000)
    for pad in range(4):
        header = {"w": {"dtype": "F32", "shape": [300_000], "data_offsets": [0, 1_200_000]}}
        text = json.dumps(header).encode() + b" " * pad
        length = len(text).to_bytes(8, "little")
        Path(f"{pad}.safetensors").write_bytes(length + text + (weight + pad).numpy().tobytes())
    average = average_checkpoints([f"{pad}.safetensors" for pad in range(4)])
    torch.testing.assert_close(average["w"], weight + 1.5, atol=1e-5, rtol=0)


def test_expanded_tensors() -> None:
    """A tensor that is expanded in a file is averaged in full."""
    torch.save({"model_state_dict": {"w": torch.ones(1).expand(5)}}, "0.pth")
    torch.save({"model_state_dict": {"w": torch.arange(5.0)}}, "1.pth")
    for paths in (["0.pth", "1.pth"], ["1.pth", "0.pth"]):
        assert average_checkpoints(paths)["w"].tolist() == [0.5, 1, 1.5, 2, 2.5]


def test_numbers_of_8_bits() -> None:
    """float8 weights are averaged in float32; those that torch cannot compute with are named."""
    for index in range(3):
        values = torch.tensor([1.0, 2.0 + index, -8.0]).to(torch.float8_e4m3fn)
        torch.save({"model_state_dict": {"w": values}}, f"{index}.pth")
    average = average_checkpoints([f"{index}.pth" for index in range(3)])["w"]
    assert average.dtype == torch.float8_e4m3fn
    assert average.float().tolist() == [1, 3, -8]
    packed = torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    torch.save({"model_state_dict": {"w": packed}}, "packed.pth")
    with pytest.raises(CheckpointError, match=r"\['w'\] in packed.pth is .*: torch cannot compute"):
        average_checkpoints(["packed.pth"])


def test_counters_that_share_memory() -> None:
    """Integers of one element become the largest each, wherever they lie."""
    for index in range(2):
        counters = torch.tensor([1 + index, 9, 2 - index])
        state = {"a": counters[0], "b": counters[2], "c": torch.tensor(index, dtype=torch.uint16)}
        torch.save({"model_state_dict": state}, f"{index}.pth")
    average = average_checkpoints(["0.pth", "1.pth"])
    assert [int(average[key]) for key in "abc"] == [2, 2, 1]


def test_integers_and_bools() -> None:
    """Counters become the largest, tables are the first's, and bools must agree."""
    for index, seen in enumerate([True, True, False]):
        counter, table = torch.tensor(5 - index), torch.tensor([index, 1])
        state = {"n": counter, "table": table, "seen": torch.tensor(seen)}
        save_checkpoint({"model_state_dict": state}, f"{index}.pth")
    average = average_checkpoints(["1.pth", "0.pth"])
    assert (int(average["n"]), average["table"].tolist(), bool(average["seen"])) == (
        5,
        [1, 1],
        True,
    )
    with pytest.raises(
        CheckpointError, match=r"\['seen'\] is bool and not the same in 0.pth and 2.pth"
    ):
        average_checkpoints(["0.pth", "1.pth", "2.pth"])


def test_files_that_do_not_fit() -> None:
    """Other names, shapes and dtypes are errors that name both files and the key."""
    states = {
        "a": {"w": torch.zeros(2)},
        "b": {"w": torch.zeros(3)},
        "c": {"w": torch.zeros(2).double()},
        "d": {"v": torch.zeros(2)},
    }
    for name, state in states.items():
        save_checkpoint({"model_state_dict": state}, f"{name}.pth")
    messages = {
        "b": r"\['w'\] is \(2,\) float32 in a.pth but \(3,\) float32 in b.pth",
        "c": r"\['w'\] is \(2,\) float32 in a.pth but \(2,\) float64 in c.pth",
        "d": r"\['w'\] is in a.pth but not in d.pth",
    }
    for name, message in messages.items():
        with pytest.raises(CheckpointError, match=message):
            average_checkpoints(["a.pth", f"{name}.pth"])
    save_checkpoint({"epoch": 1}, "e.pth")
    with pytest.raises(
        CheckpointError, match=r"e.pth has no model_state_dict to average; found epoch"
    ):
        average_checkpoints(["a.pth", "e.pth"])
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint f.pth"):
        average_checkpoints(["f.pth"])
    for weights, message in (([1.0], "1 weights for 2"), ([1.0, -1.0], "expected positive")):
        with pytest.raises(ValueError, match=message):
            average_checkpoints(["a.pth", "a.pth"], weights)
    with pytest.raises(ValueError, match="no checkpoints to average"):
        average_checkpoints([])


@pytest.mark.parametrize("write", [save_checkpoint, torch.save])
def test_damaged_files(write: Callable[..., None]) -> None:
    """One flipped bit, wherever it is, is an error: nothing damaged is averaged."""
    for name in ("0.pth", "1.pth"):
        write({"model_state_dict": {"w": torch.randn(500_000)}, "rest": torch.zeros(9)}, name)
    whole = Path("1.pth").read_bytes()
    places = [*range(40, len(whole), len(whole) // 23), len(whole) - 5]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 4
        Path("1.pth").write_bytes(damaged)
        try:
            average = average_checkpoints(["0.pth", "1.pth"])
        except CheckpointError:
            continue
        # torch.save pads its records, and sums up none of that
        assert write is torch.save
        assert torch.equal(average["w"], undamaged_average())
    Path("1.pth").write_bytes(whole[:-100_000])
    with pytest.raises(CheckpointError, match=r"1.pth"):
        average_checkpoints(["0.pth", "1.pth"])


def test_damage_in_another_order() -> None:
    """One flipped bit is an error too in a file whose tensors lie in another order."""
    state = {f"{i}": torch.randn(300_000) for i in range(4)}
    save_checkpoint({"model_state_dict": state}, "0.pth")
    save_checkpoint({"model_state_dict": dict(reversed(state.items()))}, "1.pth")
    whole = Path("1.pth").read_bytes()
    for place in range(40, len(whole), len(whole) // 11):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        Path("1.pth").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"1.pth"):
            average_checkpoints(["0.pth", "1.pth"])


def undamaged_average() -> Tensor:
    first, second = (torch.load(name)["model_state_dict"]["w"] for name in ("0.pth", "1.pth"))
    return torch.lerp(first, second, 0.5)


def test_an_average_that_says_what_it_is() -> None:
    """A saved average has what was averaged, no optimizer, and batch norm's statistics if asked."""
    paths = save_models(3)
    save_average(paths, "swa.pth", weights=[1, 1, 2])
    found = load_checkpoint("swa.pth", make_model())
    assert set(found) == {"stage", "model_state_dict", "averaged"}
    assert found["averaged"][2] == {
        "path": "exp_2.pth", "weight": 0.5, "stage": "train", "epoch": 2, "metrics": {"loss": 1 / 3}
    }  # fmt: skip
    model = make_model()
    save_average(paths, "bn.pth", model=model, loader=BATCHES)
    oracle = make_model()
    oracle.load_state_dict(average_checkpoints(paths))
    swa_utils.update_bn(BATCHES, oracle)
    loaded = make_model()
    load_checkpoint("bn.pth", loaded)
    torch.testing.assert_close(loaded.state_dict(), oracle.state_dict())
    with pytest.raises(ValueError, match="a loader and no model"):
        save_average(paths, "c.pth", loader=BATCHES)


def test_the_best_checkpoints() -> None:
    """The best few of a log directory come best first; more than there are is an error."""
    manager = CheckpointManager(
        "runs/a", metric="accuracy", metric_minimization=False, save_n_best=3
    )
    for epoch, score in enumerate([0.1, 0.5, float("nan"), 0.4, 0.9], start=1):
        manager.process(score, epoch, make_checkpoint("train", epoch, nn.Linear(1, 1)))
    assert [path.name for path in best_checkpoints("runs/a", 3)] == [
        "exp_5.pth",
        "exp_2.pth",
        "exp_4.pth",
    ]
    with pytest.raises(FileNotFoundError, match=r"runs/a has 3 exp_\*.pth with a score, not 4"):
        best_checkpoints("runs/a", 4)
    with pytest.raises(FileNotFoundError, match=r"metrics.json is not there"):
        best_checkpoints("runs/b", 1)
    with pytest.raises(ValueError, match="asked for -1; expected 1 or more"):
        best_checkpoints("runs/a", -1)


@pytest.mark.parametrize("minimize", [False, True])
def test_greedy_soup(minimize: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The soup is the best first; what makes it worse stays out, and its score never falls."""
    weights = [2.2, 4.0, 9.0, 3.4, float("nan")]
    for index, weight in enumerate(weights):
        save_checkpoint({"model_state_dict": {"w": torch.tensor(weight)}}, f"{index}.pth")
    sign = 1 if minimize else -1

    def evaluate(state: dict[str, Tensor]) -> float:
        return sign * abs(float(state["w"]) - 3)

    with caplog.at_level("INFO", "batteries"):
        soup = greedy_soup([f"{i}.pth" for i in range(5)], evaluate, metric_minimization=minimize)
    assert [path.name for path in soup.paths] == ["3.pth", "0.pth"]
    assert abs(soup.score) <= abs(float(torch.tensor(weights[3])) - 3)
    assert evaluate(soup.state) == soup.score
    assert len(caplog.messages) == 4
    assert [made.taken for made in soup.decisions] == [True, True, False, False]
    with pytest.raises(ValueError, match="of 1 checkpoints none has a score"):
        greedy_soup(["4.pth"], evaluate)


def test_a_soup_takes_what_does_not_make_it_worse() -> None:
    """A checkpoint with which the score stays as it is goes in."""
    for index in range(3):
        save_checkpoint({"model_state_dict": {"w": torch.tensor(float(index))}}, f"{index}.pth")
    soup = greedy_soup([f"{index}.pth" for index in range(3)], lambda state: 0.5)  # noqa: ARG005
    assert len(soup.paths) == 3
    assert float(soup.state["w"]) == 1


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ("a.pth", "a.pth"),
        ("a.pth", "reversed.pth"),
        ("a.pth", "transposed.pth"),
        ("a.safetensors", "a.safetensors"),
    ],
)
def test_memory_is_one_model(first: str, other: str) -> None:
    """Ten files take the memory of one model and little more, on any number of threads."""
    state = {f"{i}": torch.randn(2**10, 2**10) for i in range(20)}
    states = {
        "a": state,
        "reversed": dict(reversed(state.items())),
        "transposed": {key: value.t() for key, value in state.items()},
        "small": {"w": torch.zeros(1)},
    }
    for name, tensors in states.items():
        save_checkpoint({"model_state_dict": tensors}, f"{name}.pth")
    for name in ("a", "small"):
        export_safetensors(f"{name}.pth", f"{name}.safetensors")
    script = f"""
from pathlib import Path
import torch
from batteries import average_checkpoints
torch.set_num_threads(16)
def peak():  # as the system counts it
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
average_checkpoints(["small.pth", "small.safetensors"] * 5)
before = peak()
average_checkpoints(["{first}"] + ["{other}"] * 9)
print(peak() - before)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert float(result.stdout) < 80 + 64
