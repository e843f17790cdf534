from __future__ import annotations

import copy
import logging
import queue
import random
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    BinaryPrecision,
    BinaryRecall,
    MulticlassConfusionMatrix,
)

from batteries import EMA, load_checkpoint, make_checkpoint, save_checkpoint, unwrap
from batteries.distributed import PerRank, rank

SCORES, TARGETS = torch.tensor([0.9, 0.8, 0.3, 0.6]), torch.tensor([1, 0, 0, 1])


def test_metrics_go_on() -> None:
    """A torchmetrics object goes on from a checkpoint as if it had seen all samples itself."""
    kinds: dict[str, Callable[[], Any]] = {
        "alone": BinaryAccuracy,
        "samples": BinaryAUROC,
        "group": lambda: MetricCollection([BinaryPrecision(), BinaryRecall(), BinaryAUROC()]),
    }
    before, after = ({name: kind() for name, kind in kinds.items()} for _ in range(2))
    for metric in before.values():
        metric.update(SCORES[:2], TARGETS[:2])
    save_checkpoint(make_checkpoint("valid", 1, nn.Linear(1, 1), **before), "last.pth")
    load_checkpoint("last.pth", **after)
    for name, kind in kinds.items():
        whole = kind()
        for part in (slice(0, 2), slice(2, 4)):
            whole.update(SCORES[part], TARGETS[part])
        after[name].update(SCORES[2:], TARGETS[2:])
        assert after[name].compute() == whole.compute(), name
        before[name].compute()


def test_metric_forward_goes_on() -> None:
    """The number of updates is a part of what a metric remembers: it computes without a warning."""
    first, second = MeanMetric(), MeanMetric()
    first(torch.tensor([1.0, 2.0]))
    save_checkpoint(make_checkpoint("valid", 1, nn.Linear(1, 1), mean=first), "last.pth")
    load_checkpoint("last.pth", mean=second)
    assert second.compute() == 1.5
    assert second.update_count == 1


def test_metric_of_other_classes() -> None:
    """A metric with other shapes than the saved one is refused, and stays as it was."""
    saved, own = MulticlassConfusionMatrix(3), MulticlassConfusionMatrix(2)
    own.update(torch.tensor([1]), torch.tensor([1]))
    save_checkpoint(make_checkpoint("valid", 1, nn.Linear(1, 1), matrix=saved), "last.pth")
    with pytest.raises(ValueError, match="they differ in confmat: make the metric as it was"):
        load_checkpoint("last.pth", matrix=own)
    assert own.compute().tolist() == [[0, 0], [0, 1]]


def _metric_of_each_rank() -> list[float]:
    first, second = BinaryAccuracy(sync_on_compute=False), BinaryAccuracy(sync_on_compute=False)
    first.update(torch.tensor([float(rank())]), torch.tensor([1]))
    checkpoint = make_checkpoint("valid", 1, nn.Linear(1, 1), metric=PerRank(first))
    PerRank(second).load_state_dict(checkpoint["metric_state_dict"])
    return [float(second.compute())]


def test_metric_per_rank() -> None:
    """Inside `PerRank` each rank gets its own metric's states back."""
    assert run_ranks(_metric_of_each_rank, world_size=2) == [[0.0], [1.0]]


class Scores(nn.Module):
    """The user's own module of metrics, which has parameters, too."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy, self.scale = BinaryAccuracy(), nn.Linear(1, 1)


def test_metrics_in_a_module() -> None:
    """Metrics in a module of the user's own are saved and loaded with it."""
    first, second = Scores(), Scores()
    first.accuracy.update(torch.tensor([0.9, 0.1]), torch.tensor([1, 1]))
    save_checkpoint(make_checkpoint("valid", 1, nn.Linear(1, 1), scores=first), "last.pth")
    load_checkpoint("last.pth", scores=second)
    second.accuracy.update(torch.tensor([0.9, 0.9]), torch.tensor([1, 1]))
    assert second.accuracy.compute() == 0.75
    assert torch.equal(second.scale.weight, first.scale.weight)
    save_checkpoint(make_checkpoint("train", 1, first), "model.pth")
    load_checkpoint("model.pth", Scores(), strict=False)  # as a model it is one like others


class Forgetful:
    def __init__(self) -> None:
        self.total = torch.zeros(3)

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


class InADict(Forgetful):
    def __init__(self) -> None:
        self.total = {"all": [np.zeros(3)]}  # type: ignore[assignment]


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(3), persistent=False)


@pytest.mark.parametrize("kind", [Forgetful, InADict, Hidden])
def test_empty_memory_is_refused(kind: type) -> None:
    """An object that has tensors and an empty state is refused with what to do."""
    with pytest.raises(TypeError, match=r"state_dict\(\) of meter, a \w+, is empty.*\(total\)"):
        make_checkpoint("train", 1, nn.Linear(1, 1), meter=kind())
    with pytest.raises(TypeError, match="is empty"):
        PerRank(kind()).state_dict()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    assert not make_checkpoint("train", 1, nn.Linear(1, 1), scaler=scaler)["scaler_state_dict"]


class Counts(Forgetful):
    def __init__(self) -> None:
        self.seen: list[int] = []
        self.number = 0


def test_changes_outside_of_an_empty_state_are_refused() -> None:
    """An object that has changed since the last checkpoint, and has an empty state, is refused."""
    model, meter = nn.Linear(1, 1), Counts()
    for _ in range(2):
        make_checkpoint("train", 1, model, meter=meter, loss=nn.CrossEntropyLoss())
    meter.number, meter.seen = 1, [3]
    with pytest.raises(
        TypeError, match=r"meter, a Counts, is empty, .* \(number, seen\) have chang"
    ):
        make_checkpoint("train", 2, model, meter=meter)


@dataclass
class Data:  # without a hash
    number: int = 0

    def state_dict(self) -> Any:
        return None

    def load_state_dict(self, state: Any) -> None: ...


def test_empty_states_of_all_kinds() -> None:
    """A state that is None is an empty one, and an object without a hash is remembered, too."""
    model, part = nn.Linear(1, 1), Data()
    make_checkpoint("train", 1, model, part=part)
    part.number += 1
    with pytest.raises(TypeError, match=r"part, a Data, is empty, .* \(number\) have changed"):
        make_checkpoint("train", 2, model, part=part)


class Constant:
    """Its state is a part of what it remembers, and never changes."""

    def __init__(self, **held: Any) -> None:
        vars(self).update(held)

    def state_dict(self) -> dict[str, Any]:
        return {"version": 1, "scale": torch.ones(2)}

    def load_state_dict(self, state: Any) -> None: ...


class Slotted:
    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = 0

    def state_dict(self) -> dict[str, Any]:
        return {"version": 1}

    def load_state_dict(self, state: Any) -> None: ...


def _set(place: Any, key: Any, value: Any) -> None:
    place[key] = value


HELD: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "a number": (lambda: Constant(held=0), lambda part: setattr(part, "held", 1)),
    "a slot": (Slotted, lambda part: setattr(part, "held", 1)),
    "a list": (lambda: Constant(held=[1, 2]), lambda part: _set(part.held, 0, 5)),
    "a dict": (lambda: Constant(held={"a": {"b": 1}}), lambda part: _set(part.held["a"], "b", 5)),
    "a deque": (lambda: Constant(held=deque([1], 1)), lambda part: part.held.append(2)),
    "a set": (lambda: Constant(held={"a"}), lambda part: part.held.add("b")),
    "a tensor": (lambda: Constant(held=torch.zeros(3)), lambda part: part.held.add_(1)),
    "an array": (lambda: Constant(held=[np.zeros(3)]), lambda part: _set(part.held[0], 1, 5)),
    "python": (lambda: Constant(held=random.Random(0)), lambda part: part.held.random()),
    "numpy": (lambda: Constant(held=np.random.default_rng()), lambda part: part.held.random()),
    "a state": (lambda: Constant(held=np.random.RandomState()), lambda part: part.held.rand()),
    "torch": (
        lambda: Constant(held=torch.Generator()),
        lambda part: torch.rand(1, generator=part.held),
    ),
    "an object": (lambda: Constant(held=Data()), lambda part: setattr(part.held, "number", 5)),
    "a module": (
        lambda: Constant(held=nn.Linear(1, 1)),
        lambda part: nn.init.zeros_(part.held.weight),
    ),
}


@pytest.mark.parametrize("way", HELD)
def test_a_state_that_does_not_change(way: str) -> None:
    """If an object has changed since its last save, and its state has not, a warning says so."""
    made, change = HELD[way]
    model, part = nn.Linear(1, 1), made()
    for _ in range(2):
        make_checkpoint("train", 1, model, meter=part)
    change(part)
    with pytest.warns(UserWarning, match=r"meter, a \w+, is the same as .* \(held\) have ch"):
        make_checkpoint("train", 2, model, meter=part)
    make_checkpoint("train", 3, model, meter=part)


def test_optimizers_and_schedulers_of_ones_own() -> None:
    """They are looked at like other objects."""
    model = nn.Linear(1, 1)
    parts: dict[str, Any] = {"optimizer": Constant(held=0), "scheduler": Constant(held=0)}
    make_checkpoint("train", 1, model, **parts)
    parts["scheduler"].held = 1
    with pytest.warns(UserWarning, match=r"scheduler, a Constant, is the same .* \(held\) have"):
        make_checkpoint("train", 2, model, **parts)


class Wide(Scores):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 3)


class Around(torch.optim.Optimizer):
    """An optimizer around another one, as of SAM, with slow weights, as of Lookahead."""

    def __init__(self, parameters: list[Tensor], way: str) -> None:
        super().__init__(parameters, {"lr": 0.1})
        self.inner = torch.optim.SGD(self.param_groups, momentum=0.9 * (way != "slow"))
        self.slow = [p.detach().clone() for p in parameters] if way == "slow" else []
        self.ones, self.way = torch.ones(5), way

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)

    def state_dict(self) -> dict[str, Any]:
        if self.way == "copies":
            return {**super().state_dict(), "inner": copy.deepcopy(self.inner.state_dict())}
        return super().state_dict()


@pytest.mark.parametrize(("way", "lost"), [("inner", "inner"), ("slow", "slow"), ("copies", "")])
def test_optimizers_around_others(way: str, lost: str) -> None:
    """A warning names what no state of the checkpoint has, and there is none if one has it."""
    model = nn.Linear(2, 3)
    optimizer = Around(list(model.parameters()), way)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    if lost:
        with pytest.warns(UserWarning, match=rf"a Around, lacks .* \({lost}\)"):
            make_checkpoint("train", 1, model, optimizer)
    others: dict[str, Any] = {"inner": optimizer.inner} if way == "inner" else {}
    if way != "slow":
        make_checkpoint("train", 1, model, optimizer, **others)


def test_modules_with_metrics_load_like_others() -> None:
    """From older files, from and into wrappers, and in part."""
    torch.save({"model_state_dict": {}, "scores_state_dict": Scores().state_dict()}, "old.pth")
    load_checkpoint("old.pth", scores=Scores())
    first = Scores()
    first.accuracy.update(torch.tensor([0.9, 0.1]), torch.tensor([1, 1]))
    save_checkpoint(
        make_checkpoint("t", 1, nn.Linear(1, 1), scores=nn.DataParallel(first)), "1.pth"
    )
    seconds: list[Any] = [Scores(), nn.DataParallel(Scores())]
    for second in seconds:
        load_checkpoint("1.pth", scores=second)
        inner: Any = unwrap(second)
        assert inner.accuracy.compute() == 0.5
    report = load_checkpoint("1.pth", scores=Wide(), strict=False).report
    assert report.missing == ["scores.head.weight", "scores.head.bias"]


class Teacher(nn.Module):
    """It is frozen, and counts, caches and keeps what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen, self.last = nn.Linear(1, 1), 0, torch.zeros(1)
        self.register_buffer("table", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.seen, self.last, self.table = self.seen + 1, self.layer(x), torch.ones(self.seen + 1)
        return self.last


class Failing(dict[str, int]):
    def items(self) -> Any:
        raise RuntimeError("not now")


def test_what_a_resumed_run_does_without() -> None:
    """Times, caches, counts of calls and objects of libraries are not told; odd ones do no harm."""
    log, model = logging.getLogger("a_log"), nn.Linear(1, 1)
    odd = [torch.eye(2).to_sparse(), torch.ones(1, device="meta"), 10**5000, Failing(a=1)]
    weak = weakref.proxy(Data())  # its object is gone
    part: Any = Constant(log=log, calls=0, _cache={}, begun=time.time(), odd=odd, weak=weak)
    part.queue, part.compiled = queue.Queue(), torch.compile(nn.Linear(1, 1), backend="eager")
    teacher, metric = Teacher(), MeanMetric()
    metric.update(1.0)
    for epoch in range(3):
        make_checkpoint("train", epoch, model, part=part, teacher=teacher, metric=metric)
        part.calls, part.begun = epoch, time.time()
        part._cache[epoch] = teacher(part.compiled(torch.ones(1, 1)))
        part.queue.put(epoch)
        logging.getLogger(f"a_log.{epoch}").isEnabledFor(10)
        metric.compute()


def test_objects_are_freed() -> None:
    """A checkpoint keeps no object alive, and a new object at the same place has no past."""
    for number in range(5):
        part = Constant(held=number)
        make_checkpoint("train", 1, nn.Linear(1, 1), part=part)
        own = weakref.ref(part)
        del part
        assert own() is None


def test_no_false_alarms() -> None:
    """Changes of what the same checkpoint saves, and of torch's own objects, are no loss."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)
    wrapper = Constant(model=model, head=model[0], of=optimizer, groups=optimizer.param_groups)
    wrapper.weights = list(model.parameters())  # type: ignore[attr-defined]
    frozen, scaler = nn.Linear(2, 1), torch.amp.GradScaler("cpu")
    ema = EMA(model, decay=0.5)
    wrapper.averages = [*ema.module.parameters()]  # type: ignore[attr-defined]
    for epoch in range(3):
        model(torch.randn(4, 2)).sum().backward()
        optimizer.step()
        ema.update(model)
        frozen(torch.zeros(1, 2))
        more: dict[str, Any] = {"ema": ema, "wrapper": wrapper, "frozen": frozen, "scaler": scaler}
        make_checkpoint("train", epoch, model, optimizer, scheduler, **more)
        make_checkpoint("valid", epoch, model, optimizer, scheduler, **more)
        scheduler.step()


class Answers:
    """As ignite's metrics: they have any name that is asked for."""

    def __init__(self) -> None:
        self.total = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda: self

    def state_dict(self) -> dict[str, int]:
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.total = state["total"]


def test_objects_with_any_attribute() -> None:
    """An object whose `__getattr__` has an answer to every name goes on as any other."""
    before, after = Answers(), Answers()
    before.total = 3
    save_checkpoint(make_checkpoint("train", 1, nn.Linear(1, 1), meter=before), "last.pth")
    load_checkpoint("last.pth", meter=after)
    assert after.total == 3
