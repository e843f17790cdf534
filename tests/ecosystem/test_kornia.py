from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from batteries.data import DataLoader

kornia = pytest.importorskip("kornia.augmentation", reason="kornia is not installed")
pytestmark = [pytest.mark.beside("kornia"), pytest.mark.filterwarnings("ignore")]
IMAGES = torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(0))


class Images(Dataset[Tensor]):
    def __init__(self) -> None:
        self.flip = kornia.RandomHorizontalFlip(p=0.5)

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> Any:
        return index, self.flip(IMAGES[index])[0]


def loader(workers: int = 0) -> DataLoader[Any]:
    return DataLoader(Images(), 4, shuffle=True, seed=3, num_workers=workers)


def samples(batches: Any) -> list[tuple[int, bool]]:
    """The indices, and which images were flipped, as torch itself flips them."""
    seen = []
    for indices, images in batches:
        for index, image in zip(indices.tolist(), images, strict=True):
            flipped = torch.equal(image, IMAGES[index].flip(-1))
            assert flipped or torch.equal(image, IMAGES[index])
            seen.append((index, flipped))
    return seen


def test_samples() -> None:
    """Images are the same with any workers and after a resume, and new in each epoch."""
    data = loader()
    expected, later = samples(data), samples(data)
    assert {flipped for _, flipped in expected} == {True, False}
    assert dict(expected) != dict(later)
    first, other = loader(2), loader()
    first.check()
    begun = samples(islice(first, 3))
    other.load_state_dict(first.state_dict())
    assert begun + samples(other) == expected


def test_batches() -> None:
    """Augmentations in the loop depend on the step, and are the same after a resume."""
    augment = kornia.RandomAffine(degrees=30.0, p=1.0)
    first, other = loader(), loader()
    expected = [augment(images) for _, images in first]
    begun = [augment(images) for _, images in islice(first, 2)]
    assert not torch.equal(begun[0], expected[0])  # another epoch
    first.set_epoch(0)
    begun = [augment(images) for _, images in islice(first, 2)]
    other.load_state_dict(first.state_dict())
    begun += [augment(images) for _, images in other]
    assert all(torch.equal(*pair) for pair in zip(begun, expected, strict=True))
