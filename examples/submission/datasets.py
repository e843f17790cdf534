"""Digit images in three parts that share no image: training, validation and test."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset

from batteries.splits import fold_indices, make_folds

FOLDS = 5
DATA = "runs/data"  # the directory for the files of MNIST


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of an image and its class. An image is (1, height, width), from 0 to 1."""

    def __init__(self, images: Tensor, labels: Tensor, augment: bool = False) -> None:
        self.images = images  # (n, 1, height, width)
        self.labels = labels  # (n,)
        self.augment = augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        if self.augment:  # shift the image by at most one pixel
            left, top = torch.randint(3, (2,)).tolist()
            height, width = image.shape[1:]
            image = F.pad(image, (1, 1, 1, 1))[:, top : top + height, left : left + width]
        return image, self.labels[index]


class Splits(NamedTuple):
    train: Images
    valid: Images
    test: Images


def load_splits(dataset: str, fold: int) -> Splits:
    """Load all parts. One fold of five is for validation. All folds have the same test images."""
    images, labels, test_images, test_labels = load_images(dataset)
    train, valid = fold_indices(make_folds(labels, FOLDS, "stratified", seed=0), fold)
    return Splits(
        Images(images[train], labels[train], augment=True),
        Images(images[valid], labels[valid]),
        Images(test_images, test_labels),
    )


def load_images(dataset: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Load images, (n, 1, height, width), and classes of the folds, then those of the test."""
    if dataset == "mnist":
        return load_mnist()
    pixels, targets = load_digits(return_X_y=True)
    images, test_images, labels, test_labels = train_test_split(
        torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16,
        torch.tensor(targets),
        test_size=0.2,
        stratify=targets,
        random_state=0,
    )
    return images, labels, test_images, test_labels


def load_mnist() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    try:
        from torchvision.datasets import MNIST  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise SystemExit(
            f"--dataset mnist needs torchvision ({error}): pip install torchvision, "
            "or use --dataset digits, which needs no other package"
        ) from error
    try:
        train, test = (MNIST(DATA, train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as error:
        raise SystemExit(
            f"--dataset mnist could not be downloaded to {DATA}: {error}; check the network, "
            "or use --dataset digits, which needs no network"
        ) from error
    return (
        train.data[:, None].float() / 255,
        train.targets,
        test.data[:, None].float() / 255,
        test.targets,
    )
