from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from batteries import EMA, load_checkpoint, make_checkpoint, save_checkpoint

pytestmark = [pytest.mark.beside("timm"), pytest.mark.filterwarnings("ignore")]
timm = pytest.importorskip("timm", reason="timm is not installed: make ecosystem")


def part(name: str) -> Any:
    return importlib.import_module(f"timm.{name}")


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_models(name: str) -> None:
    """Our EMA equals that of timm, and our checkpoints save and load both."""
    model = timm.create_model(name, num_classes=2)
    ours = EMA(model, decay=0.5)
    theirs = part("utils").ModelEmaV3(model, decay=0.5)
    for _ in range(2):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(1.0)
        ours.update(model)
        theirs.update(model)
    save_checkpoint(make_checkpoint("train", 1, model, ema=ours), "last.pth")
    other, average = timm.create_model(name, num_classes=2), EMA(model)
    load_checkpoint("last.pth", other, ema=average)
    for weight, expected in zip(
        average.module.parameters(), theirs.module.parameters(), strict=True
    ):
        torch.testing.assert_close(weight, expected)
    images = torch.rand(2, 3, 160, 160)
    assert torch.equal(other.eval()(images), model.eval()(images))


def test_optimizers_and_schedulers() -> None:
    """timm's optimizer and scheduler resume with the same bits."""
    results = []
    for resumed in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 4)
        optimizer = part("optim").create_optimizer_v2(model, opt="lamb", lr=0.1, weight_decay=0.1)
        scheduler = part("scheduler").CosineLRScheduler(optimizer, t_initial=6, warmup_t=2)
        for epoch in range(6):
            if resumed and epoch == 3:
                load_checkpoint("last.pth", model, optimizer, scheduler)
            if resumed and epoch < 3:
                continue
            optimizer.zero_grad()
            model(torch.full((2, 4), 0.1 * epoch)).square().sum().backward()
            optimizer.step()
            scheduler.step(epoch + 1)
            if not resumed and epoch == 2:
                save_checkpoint(
                    make_checkpoint("train", 3, model, optimizer, scheduler), "last.pth"
                )
        results.append((model.weight.tolist(), optimizer.param_groups[0]["lr"]))
    assert results[0] == results[1]
