from __future__ import annotations

from collections.abc import Callable
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

from batteries import load_checkpoint, make_checkpoint, save_checkpoint
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
