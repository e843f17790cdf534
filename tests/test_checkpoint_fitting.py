"""States of optimizers, schedulers and scalers are held against the objects they go into."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from batteries import CheckpointError, load_checkpoint, make_checkpoint, save_checkpoint

CLASSES: dict[str, Any] = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and name != "Optimizer"
}
OTHERS: dict[str, list[dict[str, Any]]] = {
    "SGD": [{"momentum": 0.9}, {"momentum": 0.9, "foreach": True}],
    "Adam": [{"amsgrad": True, "fused": True}, {"lr": torch.tensor(0.1)}, {"maximize": True}],
    "RMSprop": [{"momentum": 0.9, "centered": True}],
    "AdamW": [{"foreach": True}],
}
OPTIMIZERS = [(name, options) for name in CLASSES for options in ({}, *OTHERS.get(name, []))]


def parameters(rows: int = 4) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(rows, 3)), nn.Parameter(torch.randn(2, rows))]


def make(name: str, options: Mapping[str, Any], own: list[nn.Parameter] | None = None) -> Any:
    return CLASSES[name](parameters() if own is None else own, **copy.deepcopy(options))


def step(optimizer: torch.optim.Optimizer) -> None:
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def closure() -> Any:
        for parameter in own:
            grad = parameter.detach().sin()
            sparse = isinstance(optimizer, torch.optim.SparseAdam)
            parameter.grad = grad.to_sparse(1) if sparse else grad
        return sum(parameter.detach().cos().sum() for parameter in own)

    if not isinstance(optimizer, torch.optim.LBFGS):
        closure()
        optimizer.step()
    else:
        optimizer.step(closure)  # type: ignore[no-untyped-call]


def saved(optimizer: Any, **objects: Any) -> dict[str, Any]:
    """What comes back from a file."""
    checkpoint = make_checkpoint("train", 1, nn.Linear(1, 1), optimizer, **objects)
    save_checkpoint(checkpoint, "a.pth")
    return checkpoint


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_every_optimizer_goes_on(name: str, options: dict[str, Any]) -> None:
    """Each optimizer of torch goes on from its state, bit by bit, in a new or a used object."""
    optimizer = make(name, options)
    step(optimizer)
    saved(optimizer)
    own = [
        parameter.detach().clone()
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    for used in (False, True):
        again, other = (
            make(name, options, [nn.Parameter(value.clone()) for value in own]) for _ in range(2)
        )
        if used:
            step(other)
            for parameter, value in zip(other.param_groups[0]["params"], own, strict=True):
                parameter.data.copy_(value)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        load_checkpoint("a.pth", optimizer=other)
        for each in (again, other):
            step(each)
        for index in range(len(own)):
            assert again.param_groups[0]["params"][index].equal(
                other.param_groups[0]["params"][index]
            )


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"LBFGS", "SparseAdam"}))
def test_averages_of_another_shape(name: str) -> None:
    """The state of parameters of other shapes is refused, with both shapes, before any change."""
    optimizer = make(name, {"momentum": 0.9} if name == "SGD" else {})
    step(optimizer)
    saved(optimizer)
    other = make(name, {"lr": 0.5}, parameters(rows=5))
    model = nn.Linear(1, 1)
    before = copy.deepcopy((model.state_dict(), other.state_dict()))
    with pytest.raises(
        CheckpointError, match=r"optimizer_state_dict in a\.pth does not fit: state\["
    ):
        load_checkpoint("a.pth", model, other)
    torch.testing.assert_close((model.state_dict(), other.state_dict()), before)
    report = load_checkpoint("a.pth", model, other, strict=False).report
    assert all(place.startswith("optimizer.state[") for place in report.mismatched)
    assert report.mismatched
    torch.testing.assert_close(other.state_dict(), before[1])


ALIKE = {"Adam", "AdamW", "RAdam", "NAdam", "SparseAdam"}  # means that all of them go on from


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_states_of_other_classes(name: str) -> None:
    """The state of an optimizer of another class, with other options, is refused."""
    optimizer = make(name, {})
    step(optimizer)
    saved(optimizer)
    for other in sorted(set(CLASSES) - {name} - (ALIKE if name in ALIKE | {"Adamax"} else set())):
        with pytest.raises(CheckpointError, match=r"does not fit: .* has "):
            load_checkpoint("a.pth", optimizer=make(other, {}))


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (lambda: torch.optim.SGD([{"params": p} for p in parameters()], lr=1), r"\[2\].*\[1, 1\]"),
        (
            lambda: torch.optim.SGD(parameters()[:1], lr=1),
            r"\[2\] parameters, but \[1\] in the optimizer",
        ),
    ],
)
def test_other_groups(part: Any, text: str) -> None:
    """Another number of groups, or of parameters in them, is refused with both numbers."""
    saved(make("SGD", {}))
    with pytest.raises(CheckpointError, match=f"its param_groups have {text}"):
        load_checkpoint("a.pth", optimizer=part())
    report = load_checkpoint("a.pth", optimizer=part(), strict=False).report
    assert report.mismatched == ["optimizer.param_groups"]


def test_states_of_other_versions() -> None:
    """Options that another version of torch has, or lacks, do no harm, nor do its counters."""
    optimizer = make("Adam", {})
    step(optimizer)
    checkpoint = saved(optimizer)
    [group] = checkpoint["optimizer_state_dict"]["param_groups"]
    for key in ("foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"):
        del group[key]
    group |= {"initial_lr": 0.1, "of_a_later_version": True}
    for entry in checkpoint["optimizer_state_dict"]["state"].values():
        entry["step"] = int(entry["step"])
    save_checkpoint(checkpoint, "a.pth")
    other = make("Adam", {}, optimizer.param_groups[0]["params"])
    load_checkpoint("a.pth", optimizer=other)
    step(other)


class Blocks(torch.optim.Optimizer):
    """Somebody's optimizer: its state is quantized, factored, in lists; it has a new option."""

    def __init__(self, params: Any, more: Mapping[str, Any] = {}) -> None:
        super().__init__(params, {"lr": 0.1, **more})

    def step(self, closure: Any = None) -> Any:  # noqa: ARG002
        for group in self.param_groups:
            for parameter in group["params"]:
                entry = self.state[parameter]
                entry["absmax"] = torch.ones(parameter.numel() // 2 + 1)
                entry["factors"] = [torch.eye(size) for size in parameter.shape]
                entry["moment"] = torch.zeros(parameter.numel(), dtype=torch.uint8)


class Wrapper:
    """An optimizer that is none of torch's, with a state of its own."""

    def __init__(self) -> None:
        self.param_groups, self.count = [{"params": parameters()}], 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]


def test_optimizers_of_others() -> None:
    """Optimizers that are not torch's load what they loaded before."""
    optimizer = Blocks(parameters())
    optimizer.step()
    saved(optimizer, wrapper=Wrapper())
    other = Blocks(parameters(), {"new": True})
    load_checkpoint("a.pth", optimizer=other, wrapper=Wrapper())
    load_checkpoint("a.pth", optimizer=other)  # it has a state now
    assert list(other.state_dict()["state"]) == [0, 1]
    wide = Blocks(parameters(rows=5))
    wide.step()
    with pytest.raises(CheckpointError, match=r"state\[0\]\['absmax'\] is \(7,\), but \(8,\) in"):
        load_checkpoint("a.pth", optimizer=wide)


# ---------------------------------------------------------------- schedulers and scalers


def schedulers() -> Iterator[tuple[str, Any]]:
    """Each with its name, and what makes it for an optimizer."""
    arguments: dict[str, tuple[Any, ...]] = {
        "StepLR": (2,), "MultiStepLR": ([1, 3],), "ExponentialLR": (0.9,), "ConstantLR": (),
        "LinearLR": (), "PolynomialLR": (), "CosineAnnealingLR": (10,), "OneCycleLR": (0.1, 20),
        "CosineAnnealingWarmRestarts": (3,), "CyclicLR": (0.1, 0.2), "ReduceLROnPlateau": (),
        "LambdaLR": (lambda epoch: 0.9**epoch,),
    }  # fmt: skip
    for name, values in arguments.items():
        yield name, lambda o, name=name, values=values: getattr(lr_scheduler, name)(o, *values)
    yield (
        "SequentialLR",
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o), lr_scheduler.StepLR(o, 2)], [3]
        ),
    )
    yield (
        "ChainedScheduler",
        lambda o: lr_scheduler.ChainedScheduler(
            [lr_scheduler.ExponentialLR(o, 0.9), lr_scheduler.StepLR(o, 2)]
        ),
    )


def rates(optimizer: Any, scheduler: Any, steps: int) -> list[float]:
    found = []
    for number in range(steps):
        step(optimizer)
        plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
        scheduler.step(*[number] if plateau else [])
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_every_scheduler_goes_on_and_no_other() -> None:
    """Each scheduler of torch goes on from its own state, and refuses that of each other class."""
    for name, build in schedulers():
        optimizer = make("SGD", {"momentum": 0.9})
        scheduler = build(optimizer)
        rates(optimizer, scheduler, 4)
        saved(optimizer, scheduler=scheduler)
        for other_name, other_build in schedulers():
            other = make("SGD", {"momentum": 0.9})
            if other_name == name:
                again = other_build(other)
                load_checkpoint("a.pth", None, other, again)
                assert rates(optimizer, scheduler, 6) == rates(other, again, 6)
            else:
                with pytest.raises(
                    CheckpointError, match=r"scheduler_state_dict in a\.pth does not"
                ):
                    load_checkpoint("a.pth", None, other, other_build(other))


def test_schedulers_of_other_groups() -> None:
    """A scheduler of another number of groups is refused: it would leave some of them alone."""
    optimizer = make("SGD", {})
    saved(optimizer, scheduler=lr_scheduler.ExponentialLR(optimizer, 0.9))
    two = torch.optim.SGD([{"params": parameter} for parameter in parameters()], lr=0.1)
    scheduler = lr_scheduler.ExponentialLR(two, 0.9)
    with pytest.raises(
        CheckpointError, match=r"base_lrs is \[0\.001\], but \[0\.1, 0\.1\] in the s"
    ):
        load_checkpoint("a.pth", scheduler=scheduler)
    report = load_checkpoint("a.pth", scheduler=scheduler, strict=False).report
    assert report.mismatched == ["scheduler.base_lrs"]


def test_states_of_other_objects() -> None:
    """The state of an object of another kind is refused by what it lacks."""
    optimizer = make("SGD", {})
    checkpoint = saved(optimizer, scheduler=lr_scheduler.StepLR(optimizer, 2))
    states = [value for key, value in checkpoint.items() if key.endswith("_state_dict")]
    scaler = torch.amp.GradScaler("cpu")
    for part, own in [(optimizer, 1), (lr_scheduler.StepLR(optimizer, 2), 2), (scaler, None)]:
        for index, state in enumerate([*states, [1]]):
            if index != own:
                save_checkpoint({"model_state_dict": {}, "part_state_dict": state}, "b.pth")
                before = copy.deepcopy(part.state_dict())
                with pytest.raises(
                    CheckpointError, match=r"part_state_dict in b\.pth does not fit: i"
                ):
                    load_checkpoint("b.pth", part=part)
                assert part.state_dict() == before


# ---------------------------------------------------------------- models on the meta device


def net() -> nn.Sequential:
    tied = nn.Linear(4, 4, bias=False)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), tied, tied)


def trained(
    model: nn.Module, optimizer: torch.optim.Optimizer, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    optimizer.zero_grad()
    model(torch.arange(15.0).view(5, 3).sin().to(dtype)).square().sum().backward()
    optimizer.step()
    return model.state_dict()


def test_models_on_the_meta_device() -> None:
    """A model that is on the meta device, or partly so, gets the numbers, and trains on."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    trained(model, optimizer)
    saved_model = make_checkpoint("train", 1, model, optimizer)
    save_checkpoint(saved_model, "a.pth")
    expected = copy.deepcopy(trained(model, optimizer))
    with torch.device("meta"):
        whole, part = net(), net()
    part[1] = nn.BatchNorm1d(4)
    for other in (whole, part):
        parameters = list(other.parameters())
        ours = torch.optim.AdamW(parameters)
        load_checkpoint("a.pth", other, ours)
        assert [id(parameter) for parameter in other.parameters()] == list(map(id, parameters))
        assert other[2].weight is other[3].weight
        torch.testing.assert_close(dict(trained(other, ours)), dict(expected), rtol=0, atol=0)


class Exact(torch.optim.Optimizer):
    """Momentum and weights in float32, for weights in bfloat16."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                state.update(momentum=torch.zeros_like(p, dtype=torch.float32), exact=p.float())
            state["exact"].sub_(state["momentum"].mul_(0.9).add_(p.grad.float()), alpha=0.1)
            p.copy_(state["exact"])


@pytest.mark.parametrize("kind", [Exact, torch.optim.NAdam])
def test_states_in_more_bits_than_their_parameters(kind: Any) -> None:
    """They are float32 after a resume, too; other parameters than before get their own dtype."""
    model = net().bfloat16()
    optimizer = kind(model.parameters())
    step = functools.partial(trained, dtype=torch.bfloat16)
    step(model, optimizer)
    save_checkpoint(make_checkpoint("train", 1, model, optimizer), "a.pth")
    other = net().bfloat16()
    ours = kind(other.parameters())
    load_checkpoint("a.pth", other, ours)
    assert repr(ours.state_dict()) == repr(optimizer.state_dict())
    torch.testing.assert_close(step(other, ours), step(model, optimizer), rtol=0, atol=0)
    ours = kind((wide := net()).parameters())
    load_checkpoint("a.pth", wide, ours)
    trained(wide, ours)


class Stubborn(nn.Linear):
    """Has loading code of its own, which fails after it has loaded."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        raise RuntimeError("another time")


def test_modules_that_fail_to_load() -> None:
    """If a module's own code fails, it and the modules before it have their weights again."""
    save_checkpoint(make_checkpoint("train", 1, nn.Linear(2, 1), net=nn.Linear(2, 1)), "a.pth")
    modules = nn.Linear(2, 1), Stubborn(2, 1)
    before = copy.deepcopy([*modules[0].parameters(), *modules[1].parameters()])
    with pytest.raises(CheckpointError, match=r"net_state_dict in a.pth does not fit: another"):
        load_checkpoint("a.pth", modules[0], net=modules[1])
    assert all(map(torch.equal, [*modules[0].parameters(), *modules[1].parameters()], before))


class Extra(nn.Linear):
    """Has an extra state, and may refuse another one."""

    refuses = False

    def get_extra_state(self) -> int:
        return 1

    def set_extra_state(self, _: int) -> None:
        if self.refuses:
            raise RuntimeError("another time")


class Late(nn.Linear):
    """Fails after it has loaded."""

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        super().load_state_dict(*args, **kwargs)
        raise RuntimeError("another time")


def unwritable(way: str) -> nn.Sequential:
    """A model that torch begins to load, and cannot load."""
    last: Any = Extra(2, 1)
    model = nn.Sequential(nn.Linear(2, 1), last)
    if way == "extra state":
        last.refuses = True
    elif way == "inference":
        with torch.inference_mode():
            last.bias = nn.Parameter(torch.zeros(1))
    elif way == "expanded":
        last.weight = nn.Parameter(torch.zeros(1, 1).expand(1, 2))
    elif way == "sparse":
        last.weight = nn.Parameter(torch.ones(1, 2).to_sparse())
    return model


@pytest.mark.parametrize(
    ("way", "text"),
    [
        ("extra state", "model_state_dict in a.pth does not fit: another"),
        ("inference", r"1.bias of the model cannot be loaded .* torch.inference_mode\(\)"),
        ("expanded", r"1.weight of the model cannot be loaded .* clone\(\)"),
        ("sparse", "'1.weight'] is torch.strided in a.pth but torch.sparse_coo in the model"),
    ],
)
def test_models_that_fail_in_the_middle(way: str, text: str) -> None:
    """A model that torch would load only in part stays as it was."""
    save_checkpoint(make_checkpoint("train", 1, unwritable("")), "a.pth")
    model = unwritable(way)
    before = copy.deepcopy(model[0].state_dict())
    with pytest.raises(CheckpointError, match=text):
        load_checkpoint("a.pth", model)
    assert all(map(torch.equal, model[0].state_dict().values(), before.values()))


def test_a_model_that_loads_itself() -> None:
    """If a model's own `load_state_dict` fails at its end, the model stays as it was."""
    save_checkpoint(make_checkpoint("train", 1, nn.Linear(2, 1)), "a.pth")
    model = Late(2, 1)
    before = copy.deepcopy([*model.parameters()])
    with pytest.raises(CheckpointError, match="another time"):
        load_checkpoint("a.pth", model)
    assert all(map(torch.equal, model.parameters(), before))


def test_layers_in_another_order() -> None:
    """Weights load by name, but an optimizer's state by position: a warning says so."""

    def trained(*names: str) -> list[Any]:
        model = nn.ModuleDict({name: nn.Linear(2, 2) for name in names})
        return [model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)]

    save_checkpoint(make_checkpoint("train", 1, *trained("a", "b")), "a.pth")
    load_checkpoint("a.pth", *trained("a", "b"))
    load_checkpoint("a.pth", trained("b", "a")[0])
    with pytest.warns(UserWarning, match=r"in another order than the model, from b\.weight on"):
        load_checkpoint("a.pth", *trained("b", "a"))
    found = torch.load("a.pth")
    found["model_state_dict"] = dict(sorted(found["model_state_dict"].items()))
    torch.save(found, "a.pth")  # as libraries write that sort the names
    load_checkpoint("a.pth", *trained("a", "b"))


class Growing(torch.optim.lr_scheduler.LRScheduler):
    """It changes its own options."""

    milestones = np.array([1, 2])

    def get_lr(self) -> list[float]:  # type: ignore[override]
        self.milestones = self.milestones + 1
        return [group["lr"] for group in self.optimizer.param_groups]


def test_schedulers_of_ones_own() -> None:
    """What they have may change while they run, and is compared with nothing."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    save_checkpoint(make_checkpoint("train", 1, model, None, Growing(optimizer)), "a.pth")
    for _ in range(2):
        scheduler = Growing(optimizer)
        optimizer.step()
        scheduler.step()
        load_checkpoint("a.pth", model, None, scheduler)


def test_options_of_a_longer_training() -> None:
    """A scheduler that was made for more steps gets the file's options, and a warning says so."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def schedule(steps: int) -> Any:
        kinds = torch.optim.lr_scheduler
        parts = [kinds.LinearLR(optimizer, 0.5, 1, 3), kinds.CosineAnnealingLR(optimizer, steps)]
        return kinds.SequentialLR(optimizer, parts, [3])

    save_checkpoint(make_checkpoint("train", 1, model, optimizer, schedule(10)), "a.pth")
    load_checkpoint("a.pth", model, optimizer, schedule(10))
    with pytest.warns(UserWarning, match=r"_schedulers\[1\]: T_max is 10, but 20 in the program"):
        load_checkpoint("a.pth", model, optimizer, schedule(20))


def test_meta_buffers_that_no_file_has() -> None:
    """A buffer that is not saved stays without numbers, and a warning names it."""
    with torch.device("meta"):
        model = nn.Linear(3, 4)
        model.register_buffer("angles", torch.ones(2), persistent=False)
    save_checkpoint(make_checkpoint("train", 1, nn.Linear(3, 4)), "a.pth")
    with pytest.warns(UserWarning, match="angles of the model is still on the meta device"):
        load_checkpoint("a.pth", model)
    assert not model.weight.is_meta


def test_meta_devices_stay_where_nothing_fits() -> None:
    """What does not load stays on the meta device, and an error gives no memory to anything."""
    save_checkpoint(make_checkpoint("train", 1, nn.Linear(3, 4), other=nn.Linear(1, 1)), "a.pth")
    with torch.device("meta"):
        model, wide = nn.Linear(3, 4), nn.Linear(3, 5)
        optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(CheckpointError, match=r"nothing in model_state_dict of a.pth fits the m"):
        load_checkpoint("a.pth", wide, strict=False)
    assert wide.weight.is_meta
    checkpoint = {**load_checkpoint("a.pth"), "optimizer_state_dict": optimizer.state_dict()}
    save_checkpoint(checkpoint, "a.pth")
    with pytest.raises(
        CheckpointError, match="its parameters are on the meta device; load the mod"
    ):
        load_checkpoint("a.pth", optimizer=optimizer)
    stubborn = torch.optim.SGD(net().parameters())
    with pytest.raises(CheckpointError, match="does not fit"):
        load_checkpoint("a.pth", model, stubborn)
    assert model.weight.is_meta


def test_objects_without_a_state() -> None:
    """What is no object with a state is refused with its name, and a slip is told."""
    save_checkpoint(make_checkpoint("train", 1, nn.Linear(1, 1)), "a.pth")
    slip: Any = False
    with pytest.raises(TypeError, match=r"optimizer is False; expected an object .* strict=False"):
        load_checkpoint("a.pth", nn.Linear(1, 1), slip)
    for part in (nn.Linear, nn.Linear(1, 1).state_dict(), "model"):
        with pytest.raises(TypeError, match=r"model is .*; expected an object with state_dict"):
            make_checkpoint("train", 1, part)  # type: ignore[arg-type]


def named_groups(model: nn.Module, reverse: bool = False) -> Any:
    named = [*model.named_parameters()][:: -1 if reverse else 1]
    groups = [{"params": [pair], "lr": 0.1 * number} for number, pair in enumerate(named)]
    return torch.optim.SGD(groups, momentum=0.9)


def test_groups_in_another_order() -> None:
    """The state of groups that have changed places is refused; parameters may have new names."""
    model, other = (
        nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(2))) for _ in range(2)
    )
    model(torch.ones(1, 2)).sum().backward()
    optimizer = named_groups(model)
    optimizer.step()
    save_checkpoint(make_checkpoint("train", 1, model, optimizer), "a.pth")
    moved = named_groups(other, reverse=True)
    with pytest.raises(
        CheckpointError, match=r"0\.weight where the optimizer has 1\.weight: its gr"
    ):
        load_checkpoint("a.pth", other, moved)
    assert load_checkpoint("a.pth", other, moved, strict=False).report.mismatched == [
        "optimizer.param_groups"
    ]
    for renamed in nn.DataParallel(other), nn.Sequential(other):
        load_checkpoint("a.pth", optimizer=named_groups(renamed))


def test_parameters_in_another_order() -> None:
    """Moments of other parameters are refused, as after a list that was made of a set."""
    own = parameters()
    optimizer = Exact(own)
    for each in own:
        each.grad = torch.ones_like(each)
    optimizer.step()
    save_checkpoint(make_checkpoint("train", 1, nn.Linear(1, 1), optimizer), "a.pth")
    with pytest.raises(CheckpointError, match=r"'momentum' are of the same parameters in another"):
        load_checkpoint("a.pth", optimizer=Exact(own[::-1]))
    load_checkpoint("a.pth", optimizer=Exact(own))


def test_parameters_that_were_unfrozen() -> None:
    """A warning names parameters that the run has trained, and the program has frozen again."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.Adam(model.parameters())
    for frozen in (True, False):
        model[0].requires_grad_(not frozen)
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        save_checkpoint(make_checkpoint("train", 1, model, optimizer), f"{frozen}.pth")
    load_checkpoint("False.pth", model, optimizer)
    model[0].requires_grad_(False)
    load_checkpoint("True.pth", model, torch.optim.Adam(model.parameters()))
    with pytest.warns(UserWarning, match=r"has trained 2 parameters that are .* is 0\.weight\."):
        load_checkpoint("False.pth", model, optimizer)


def test_a_state_before_the_first_step() -> None:
    """No warning names frozen parameters whose state Adagrad makes before it trains any."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    optimizer = torch.optim.Adagrad(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    save_checkpoint(make_checkpoint("train", 1, model, optimizer), "a.pth")
    load_checkpoint("a.pth", model, optimizer)
    with pytest.warns(UserWarning, match="has trained 2 parameters that are frozen"):
        load_checkpoint("a.pth", model.requires_grad_(False), optimizer)


class Broken:
    """An object that cannot load even its own state."""

    def state_dict(self) -> dict[str, int]:
        return {"seed": 1}

    def load_state_dict(self, state: dict[str, int]) -> None:
        state["other"]


def test_an_object_that_cannot_go_back() -> None:
    """The error names the state that does not fit, and the other objects are as they were."""
    save_checkpoint(make_checkpoint("train", 1, nn.Linear(2, 1), broken=Broken()), "a.pth")
    model = nn.Linear(2, 1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=r"broken_state_dict in a\.pth .* has no 'other'"):
        load_checkpoint("a.pth", model, broken=Broken())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
