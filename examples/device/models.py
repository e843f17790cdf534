"""A small convolutional network."""

from __future__ import annotations

from torch import Tensor, nn


class DigitNet(nn.Module):
    """Two blocks of convolutions, and a linear classifier. Each block halves the image."""

    def __init__(self, width: int = 32, classes: int = 10, dropout: float = 0.2) -> None:
        super().__init__()
        self.features = nn.Sequential(block(1, width), block(width, 2 * width))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:  # (batch, 1, height, width)
        features = self.features(images).mean(dim=(2, 3))  # (batch, 2 * width)
        logits: Tensor = self.classifier(self.dropout(features))
        return logits  # (batch, classes)


def block(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
