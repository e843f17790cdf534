"""albumentations: each image is a function of seed, epoch and index, with a seed and without."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
from torch.utils.data import Dataset

from batteries.data import DataLoader

REASON = "albumentations is not installed: requirements-ecosystem.txt"
transforms = pytest.importorskip("albumentations", reason=REASON)
pytestmark = pytest.mark.beside("albumentations")


class Images(Dataset[Any]):
    def __init__(self, seed: int | None) -> None:
        flips = [transforms.HorizontalFlip(p=0.5), transforms.RandomCrop(8, 8)]
        one = transforms.OneOf([transforms.GaussNoise(p=1), transforms.RandomGamma(p=1)], p=0.9)
        self.transform = transforms.Compose([*flips, one], seed=seed)

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        image = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3) + np.uint8(index)
        return index, self.transform(image=image)["image"].tobytes()


def as_it_is(samples: list[Any]) -> list[Any]:
    return samples


def loader(seed: int | None, workers: int = 0) -> DataLoader[Any]:
    options: dict[str, Any] = {"shuffle": True, "seed": 3, "collate_fn": as_it_is}
    return DataLoader(Images(seed), 4, num_workers=workers, **options)


@pytest.mark.parametrize("seed", [None, 1])
def test_images(seed: int | None) -> None:
    """Images are the same with any workers and after a resume, and new in each epoch."""
    data = loader(seed)
    expected, later = list(data), list(data)
    assert not {image for batch in expected for image in batch} & {i for b in later for i in b}
    workers = loader(seed, 2)
    workers.check()
    assert list(islice(workers, 4)) == expected[:4]
    other = loader(seed, 1)
    other.load_state_dict(workers.state_dict())
    assert list(other) == expected[4:]


def test_the_order_of_draws_is_its_own() -> None:
    """With torch's own loader, the images depend on earlier ones."""
    first, second = (Images(1), Images(1))
    assert [first[i] for i in (0, 1)] != [second[i] for i in (1, 0)][::-1]
