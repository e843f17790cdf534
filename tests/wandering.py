"""A small model, batches for it, and weights that wander."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

BATCHES = torch.randn(6, 16, 3, generator=torch.Generator().manual_seed(1)) * 3 + 1


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
