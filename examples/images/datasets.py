"""Images in class folders. The workers decode and augment them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

Change = Callable[[Image.Image], Image.Image]


class ImageFolder(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of an image and the number of its class, from the files `folder/class/*`.

    Args:
        change: A function that augments a decoded image.
    """

    def __init__(self, folder: Path, change: Change | None = None) -> None:
        self.classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
        self.files = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted((folder / name).iterdir())
        ]
        self.change = change

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path, label = self.files[index]
        with Image.open(path) as file:
            image = file.convert("RGB")
        if self.change is not None:
            image = self.change(image)
        return to_tensor(image), torch.tensor(label)


def augment(image: Image.Image) -> Image.Image:
    """Augment an image: a random crop at the old size, a flip, other contrast and brightness.

    The loader seeds numpy before each sample. So the random numbers depend only on the seed, the
    epoch and the index.
    """
    width, height = image.size
    part = np.random.uniform(0.7, 1.0) ** 0.5
    left, top = np.random.uniform(0, 1 - part, 2) * (width, height)
    box = (left, top, left + part * width, top + part * height)
    image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    if np.random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    contrast, light = np.random.uniform(0.8, 1.2), np.random.uniform(-25, 25)
    return image.point(lambda value: contrast * (value - 128) + 128 + light)


def torchvision_transforms(side: int = 32) -> Change:
    """Make a similar augmentation with torchvision, whose generator the loader seeds too."""
    try:
        from torchvision.transforms import v2  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise SystemExit(
            f"--transforms torchvision needs torchvision ({error}): pip install torchvision, "
            "or leave out the option"
        ) from error
    crop = v2.RandomResizedCrop(side, scale=(0.7, 1.0), ratio=(1.0, 1.0))
    change: Change = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.ColorJitter(0.2, 0.2)])
    return change


def to_tensor(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1)
    return (pixels - 128) / 64  # (3, height, width)


def mixup(images: Tensor, labels: Tensor, classes: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Mix each image and its label with another one of the batch (Zhang et al., 2018).

    Returns:
        The images, and the probability of each class, (batch, classes).
    """
    wanted = F.one_hot(labels, classes).float()
    if not alpha:
        return images, wanted
    share, other = float(np.random.beta(alpha, alpha)), torch.randperm(len(images))
    return images.lerp(images[other], share), wanted.lerp(wanted[other], share)
