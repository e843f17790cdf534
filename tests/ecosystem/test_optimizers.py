"""Optimizers and schedulers: after a resume from a file, training goes on with the same bits."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler as lrs
from torch.optim import swa_utils

from batteries import load_checkpoint, make_checkpoint, save_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, about themselves
Made = Callable[[optim.Optimizer], Any]
OPTIMIZERS = sorted(
    name
    for name in optim.__all__
    if isinstance(kind := getattr(optim, name), type) and kind is not optim.Optimizer
)
SCHEDULERS: dict[str, Made] = {
    "ChainedScheduler": lambda o: lrs.ChainedScheduler(
        [lrs.ConstantLR(o, 0.5, 3), lrs.ExponentialLR(o, 0.9)]
    ),
    "ConstantLR": lambda o: lrs.ConstantLR(o, 0.5, 3),
    "CosineAnnealingLR": lambda o: lrs.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 3, 2),
    "CyclicLR": lambda o: lrs.CyclicLR(o, 0.01, 0.1, 3),
    "ExponentialLR": lambda o: lrs.ExponentialLR(o, 0.9),
    "LambdaLR": lambda o: lrs.LambdaLR(o, lambda epoch: 0.5**epoch),
    "LinearLR": lambda o: lrs.LinearLR(o, 0.1, total_iters=5),
    "MultiplicativeLR": lambda o: lrs.MultiplicativeLR(o, lambda epoch: 1 - 0.1 * epoch),
    "MultiStepLR": lambda o: lrs.MultiStepLR(o, [2, 4]),
    "OneCycleLR": lambda o: lrs.OneCycleLR(o, 0.1, total_steps=8),
    "PolynomialLR": lambda o: lrs.PolynomialLR(o, 6, 2.0),
    "ReduceLROnPlateau": lambda o: lrs.ReduceLROnPlateau(o, patience=1),
    "SequentialLR": lambda o: lrs.SequentialLR(
        o, [lrs.ConstantLR(o, 0.5, 9), lrs.ExponentialLR(o, 0.9)], [2]
    ),
    "StepLR": lambda o: lrs.StepLR(o, 2),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.01, 4),
}
# The order of the steps: fixed numbers, for a plateau too.
LOSSES = [1.0, 0.5, 0.6, 0.7, 0.8, 0.9]


class Training:
    """A model, an optimizer and a scheduler; gradients are those of fixed batches."""

    def __init__(
        self, make: Callable[[Any], optim.Optimizer], schedule: Made, sparse: bool
    ) -> None:
        torch.manual_seed(0)
        first = nn.Embedding(4, 4, sparse=True) if sparse else nn.Linear(4, 4, bias=False)
        self.sparse = sparse
        self.model = first if sparse else nn.Sequential(first, nn.Linear(4, 4, bias=False))
        self.optimizer = make(self.model.parameters())
        self.scheduler = schedule(self.optimizer)

    def run(self, steps: range) -> list[float]:
        rates = []
        for step in steps:
            x = torch.full((2,), step % 4) if self.sparse else torch.full((2, 4), 0.1 * step)

            def closure(x: torch.Tensor = x) -> float:
                self.optimizer.zero_grad()
                loss = (self.model(x) - 1).square().sum()
                loss.backward()
                return float(loss)

            closure()
            self.optimizer.step(closure)
            plateau = isinstance(self.scheduler, lrs.ReduceLROnPlateau)
            self.scheduler.step(*[LOSSES[step]] * plateau)
            rates.append(float(self.optimizer.param_groups[0]["lr"]))
        return rates


def check(
    make: Callable[[Any], optim.Optimizer],
    schedule: Made,
    sparse: bool = False,
    still: bool = False,
) -> None:
    whole, first, other = (Training(make, schedule, sparse) for _ in range(3))
    start = [weight.clone() for weight in other.model.parameters()]
    rates = whole.run(range(6))
    first.run(range(3))
    state = make_checkpoint("train", 3, first.model, first.optimizer, first.scheduler)
    save_checkpoint(state, "last.pth")
    load_checkpoint("last.pth", other.model, other.optimizer, other.scheduler)
    assert other.run(range(3, 6)) == rates[3:]
    weights = list(other.model.parameters())
    assert all(map(torch.equal, weights, whole.model.parameters()))
    assert still or not all(map(torch.equal, weights, start))


@pytest.mark.beside("torch.optim", package="torch")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str) -> None:
    """Each optimizer of torch resumes with the same bits."""
    kind = getattr(optim, name)
    check(lambda ps: kind(ps, lr=0.01), SCHEDULERS["StepLR"], sparse=name == "SparseAdam")


@pytest.mark.beside("torch.optim.lr_scheduler", package="torch")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(name: str) -> None:
    """Each scheduler of torch resumes with the same learning rates."""
    check(lambda ps: optim.SGD(ps, lr=0.1, momentum=0.9), SCHEDULERS[name])


def test_none_is_missing() -> None:
    """The schedulers above are all that torch has."""
    known = set(lrs.__all__) - {"LRScheduler"}
    assert known == set(SCHEDULERS) - {"SWALR"}


# Those that need more than parameters and a rate, and those whose own state is not all they have.
OTHERS = {
    "a2grad", "adago", "adahessian", "adalomo", "adammini", "adamuon", "alig", "bsam", "demo",
    "distributedmuon", "lomo", "muon", "muonclip", "normuon", "ranger21", "sophiah", "dash",
    "gravity", "kron", "magma",
}  # fmt: skip
OBJECTS = {"adashift", "conda", "scalableshampoo"}


@pytest.mark.beside(
    "pytorch-optimizer",
    remedy="105 of its 128 optimizers work as they are. Its `Conda` needs "
    "`torch.serialization.add_safe_globals([GaLoreProjector])`. 20 were not tried: they need other "
    "arguments, or do not resume from a file of `torch.save` either.",
    cannot="The states of AdaShift and ScalableShampoo have objects that torch does not load, so "
    "`make_checkpoint` raises an error.",
)
def test_pytorch_optimizer() -> None:
    """Its optimizers resume with the same bits, or a checkpoint refuses them."""
    theirs: Any = pytest.importorskip("pytorch_optimizer", reason="pytorch-optimizer is missing")
    # Some move no weight in so few steps.
    for name in theirs.get_supported_optimizers():
        make = functools.partial(theirs.load_optimizer(name), lr=0.01)
        if name in OBJECTS:
            with pytest.raises(TypeError, match="a checkpoint cannot hold optimizer_state_dict"):
                check(make, SCHEDULERS["StepLR"], still=True)
        elif name not in OTHERS:
            check(make, SCHEDULERS["StepLR"], still=True)
    library = "pytorch_optimizer.optimizer.utils.galore"
    projector = importlib.import_module(library).GaLoreProjector
    with torch.serialization.safe_globals([projector]):
        conda = functools.partial(theirs.load_optimizer("conda"), lr=0.01)
        check(conda, SCHEDULERS["StepLR"])
