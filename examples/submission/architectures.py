"""The two architectures of the experiment, by name."""

from __future__ import annotations

from collections.abc import Callable

from models import DigitNet
from torch import nn


def large_filters(pixels: int) -> nn.Module:
    """Make a layer of large filters, and a classifier that knows where each filter has matched."""
    return nn.Sequential(
        *(nn.Conv2d(1, 64, 5, padding=2, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.1), nn.Linear(64 * pixels // 4, 10)),
    )


ARCHITECTURES: dict[str, Callable[[int], nn.Module]] = {
    "deep": lambda _: DigitNet(width=16, dropout=0.1),
    "large": large_filters,
}
