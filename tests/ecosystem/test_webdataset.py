"""webdataset: shards in tar files, which it divides among workers itself."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest

from batteries.data import DataLoader

REASON = "webdataset is not installed: requirements-ecosystem.txt"
web = pytest.importorskip("webdataset", reason=REASON)

# It leaves files for the garbage collector to close.
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
    pytest.mark.beside(
        "webdataset",
        remedy="Use `shuffle(1000, rng=random)`: without `rng`, the time of day is the seed.",
        cannot="Its datasets have no state, so they cannot resume in the middle of an epoch; an "
        "error says so.",
    ),
]


def shards(tmp_path: Path) -> list[str]:
    for shard in range(4):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for number in range(shard * 5, shard * 5 + 5):
                text = str(number).encode()
                info = tarfile.TarInfo(f"{number:03}.txt")
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text))
    return [str(path) for path in sorted(tmp_path.glob("*.tar"))]


def as_it_is(samples: Any) -> Any:
    return samples


def numbers(loader: Any) -> list[int]:
    return [int(sample["txt"]) for batch in loader for sample in batch]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_sample_comes_once(workers: int, tmp_path: Path) -> None:
    """In each epoch, with any workers; in the middle of one it says that it cannot go on.

    Its `shuffle` draws by the time of day, unless `rng=random` lets it draw by what is keyed.
    """
    data = web.WebDataset(shards(tmp_path), shardshuffle=False).shuffle(8, rng=random)
    options: dict[str, Any] = {"collate_fn": as_it_is, "num_workers": workers, "seed": 3}
    loader: Any = DataLoader(data, 3, **options)
    orders = [numbers(loader) for _ in range(2)]
    assert [sorted(order) for order in orders] == [[*range(20)]] * 2
    other: Any = DataLoader(data, 3, **options)
    assert numbers(other) == orders[0]
    assert orders[0] != orders[1]
    with pytest.raises(ValueError, match="has no load_state_dict"):
        other.load_state_dict({**loader.state_dict(), "position": 2})
