"""The data loader and gradient accumulation, beside torch's own and the loop by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from measure import peer, report, take_turns
from torch import nn
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import Dataset, TensorDataset

from batteries import accumulate
from batteries._seeding import rekey
from batteries.data import DataLoader

Contenders = dict[str, Callable[[], object] | None]
BATCHES, BATCH_SIZE = 200, 64


class Images(Dataset[torch.Tensor]):
    """A tiny dataset that may draw, as those with augmentations do."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((4,), float(index))


def run_through(loader: Any) -> Callable[[], None]:
    def run() -> None:
        for _ in loader:
            pass

    return run


def loading() -> None:
    data = TensorDataset(torch.randn(BATCHES * BATCH_SIZE, 4))
    contenders: Contenders = {
        "torch": run_through(TorchLoader(data, BATCH_SIZE, shuffle=True)),
        "batteries": run_through(DataLoader(data, BATCH_SIZE, shuffle=True)),
    }
    timings = take_turns(contenders, turns=15, steps=BATCHES)
    report("training: a batch of 64, tensors, no workers", timings, reference="torch", added=True)
    images = Images(BATCHES * BATCH_SIZE)
    contenders = {
        "torch": run_through(TorchLoader(images, BATCH_SIZE, shuffle=True)),
        "batteries": run_through(DataLoader(images, BATCH_SIZE, shuffle=True)),
    }
    timings = take_turns(contenders, turns=9, steps=BATCHES * BATCH_SIZE)
    title = "training: a sample, any dataset, no workers"
    report(title, timings, reference="torch", added=True)
    options: dict[str, Any] = {"num_workers": 1, "persistent_workers": True, "shuffle": True}
    contenders = {
        "torch": run_through(TorchLoader(data, BATCH_SIZE, **options)),
        "batteries": run_through(DataLoader(data, BATCH_SIZE, **options)),
    }
    timings = take_turns(contenders, turns=15, steps=BATCHES)
    report("training: a batch of 64, tensors, one worker", timings, reference="torch")
    timings = take_turns({"rekey": lambda: rekey(42, 0, 7)}, turns=9, calls=2000)
    report("training: new keys for python, numpy and torch", timings, reference="rekey")


def accumulating() -> None:
    batches = [torch.randn(4, 8) for _ in range(BATCHES)]
    contenders: Contenders = {}
    for name in ("by hand", "batteries"):
        torch.manual_seed(0)
        model = nn.Linear(8, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        contenders[name] = (by_hand if name == "by hand" else with_ours)(model, optimizer, batches)
    timings = take_turns(contenders, turns=25, steps=BATCHES)
    report("training: a micro-batch, windows of 4", timings, reference="by hand", added=True)


def by_hand(model: Any, optimizer: Any, batches: list[torch.Tensor]) -> Callable[[], None]:
    """Correct too: weighted by samples, with the last window as it is."""

    def run() -> None:
        for start in range(0, len(batches), 4):
            window = batches[start : start + 4]
            total = sum(len(x) for x in window)
            for x in window:
                loss = model(x).square().mean()
                (loss * (len(x) / total)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def with_ours(model: Any, optimizer: Any, batches: list[torch.Tensor]) -> Callable[[], None]:
    def run() -> None:
        for x, window in accumulate(batches, model, 4):
            with window:
                loss = model(x).square().mean()
                window.backward(loss)
            if window.closed:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    return run


def resuming() -> None:
    """The first batch of an epoch over a million samples, and of a resumed epoch."""

    def ours(position: int, length: int) -> Callable[[], object]:
        def first() -> object:
            loader = DataLoader(Images(length), 1, shuffle=True, seed=1)
            loader.load_state_dict({**loader.state_dict(), "position": position})
            return next(iter(loader))

        return first

    def torchs() -> object:
        return next(iter(TorchLoader(Images(10**6), 1, shuffle=True)))

    contenders: Contenders = {
        "batteries, batch 0 of 10^6": ours(0, 10**6),
        "batteries, batch 5,000 of 10^6": ours(5000, 10**6),
        "batteries, batch 5,000,000 of 10^9": ours(5_000_000, 10**9),
        "torch, batch 0 of 10^6": torchs,
        "accelerate, skip_first_batches 5,000 of 10^6": skipping(),
    }
    timings = take_turns(contenders, turns=9)
    title = "training: the first batch"
    report(title, timings, reference="batteries, batch 0 of 10^6", unit="ms")


def skipping() -> Callable[[], object] | None:
    accelerate: Any = peer("accelerate")
    if accelerate is None:
        return None
    return lambda: next(
        iter(accelerate.skip_first_batches(TorchLoader(Images(10**6), 1, shuffle=True), 5000))
    )


def main() -> None:
    loading()
    accumulating()
    resuming()
