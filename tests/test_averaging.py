"""EMA and SWA, while training."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import Tensor, nn
from torch.optim import swa_utils
from wandering import make_model, steps

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
)


def weights_of(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().reshape(-1) for p in module.parameters()])


def assert_same(first: nn.Module, second: nn.Module) -> None:
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


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


def test_a_schedule_of_the_decay() -> None:
    """A decay that is set counts from the next update on, and is checked like the first one."""
    model = nn.Linear(1, 1, bias=False)
    ema = EMA(model, 1.0)
    expected = model.weight.item()
    for decay in (0.5, 0.75, 0.25):
        nn.init.normal_(model.weight)
        ema.decay = decay
        ema.update(model)
        expected = decay * expected + (1 - decay) * model.weight.item()
        [average] = ema.module.parameters()
        assert average.item() == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"decay is 1\.5; expected 0 to 1"):
        ema.decay = 1.5
    assert ema.decay == 0.25


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
    with pytest.raises(ValueError, match=r"the average has 1.weight, but the model does not"):
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
        with pytest.raises(
            RuntimeError, match="make the checkpoint after the block, with `ema=ema`"
        ):
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
        with pytest.raises(RuntimeError, match="make the checkpoint after the block"):
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


def test_calls_that_are_left_out_are_checked() -> None:
    """A call that `update_every` leaves out raises as the others, and does not count."""
    model = make_model()
    ema = EMA(model, update_every=3)
    with ema.swapped(model), pytest.raises(RuntimeError, match="inside of `swapped`"):
        ema.update(model)
    with pytest.raises(ValueError, match="but the model does not"):
        ema.update(nn.Linear(3, 1))
    assert ema.state_dict()["updates"] == 0


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
