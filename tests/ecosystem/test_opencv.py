from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
from torch.utils.data import Dataset

from batteries.data import DataLoader

cv2: Any = pytest.importorskip("cv2", reason="OpenCV is not installed: make ecosystem")


class Images(Dataset[Any]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        noise = np.zeros(3)
        cv2.randn(noise, 0, 1)
        return index, noise


def loader(workers: int = 0) -> DataLoader[Any]:
    return DataLoader(Images(), 4, shuffle=True, seed=3, num_workers=workers)


def plain(batches: Any) -> list[Any]:
    return [(indices.tolist(), noise.tolist()) for indices, noise in batches]


@pytest.mark.beside("OpenCV", package="opencv-python-headless")
def test_noise() -> None:
    """A sample gets the same numbers of `randn` with any workers and after a resume."""
    data = loader()
    expected, later = plain(data), plain(data)
    assert {tuple(row) for _, rows in expected for row in rows}.isdisjoint(
        tuple(row) for _, rows in later for row in rows
    )
    first, other = loader(2), loader()
    first.check()
    begun = plain(islice(first, 3))
    other.load_state_dict(first.state_dict())
    assert begun + plain(other) == expected
