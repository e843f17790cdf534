from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from batteries import CheckpointManager, load_checkpoint, make_checkpoint

pytestmark = [pytest.mark.beside("torchao"), pytest.mark.filterwarnings("ignore")]
optim = pytest.importorskip("torchao.optim", reason="torchao is not installed: make ecosystem")


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(2, 128)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["AdamW8bit", "AdamW4bit", "AdamWFp8"])
def test_small_states_go_on(kind: str) -> None:
    """An optimizer with 8-bit states resumes with the same bits, and torch.load reads the file."""
    first, second = nn.Linear(128, 128), nn.Linear(128, 128)
    ours, theirs = (getattr(optim, kind)(model.parameters(), lr=0.1) for model in (first, second))
    step(first, ours)
    with CheckpointManager("logs", background=True) as manager:
        manager.process(0.5, epoch=1, checkpoint=make_checkpoint("train", 1, first, ours))
    load_checkpoint("logs/last.pth", second, theirs)
    step(first, ours)
    step(second, theirs)
    assert torch.equal(first.weight, second.weight)
    plain: dict[str, Any] = torch.load("logs/last.pth")
    assert plain["epoch"] == 1
