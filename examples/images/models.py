"""A small residual network."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn


class ResNet(nn.Module):
    """Three residual blocks. The second and the third halve the image and double the features."""

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, width), nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.Sequential(
            Block(width, width, stride=1),
            Block(width, 2 * width, stride=2),
            Block(2 * width, 4 * width, stride=2),
        )
        self.classifier = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:  # (batch, 3, height, width)
        features = self.stages(self.stem(images)).mean(dim=(2, 3))  # (batch, 4 * width)
        logits: Tensor = self.classifier(features)
        return logits  # (batch, classes)


class Block(nn.Module):
    """Two convolutions, whose result is added to the input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.change = nn.Sequential(
            conv(inputs, outputs, stride=stride),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            conv(outputs, outputs),
            nn.BatchNorm2d(outputs),
        )
        # The kernel is as large as the stride, so every pixel counts.
        same = stride == 1 and inputs == outputs
        shorter = nn.Conv2d(inputs, outputs, stride, stride, bias=False)
        self.shortcut = nn.Identity() if same else shorter

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.change(x))


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
