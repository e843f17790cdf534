from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from batteries import load_checkpoint, make_checkpoint, save_checkpoint
from batteries.data import DataLoader

pytestmark = [
    pytest.mark.beside(
        "litdata",
        remedy="Its `StreamingDataLoader` can be resumed. In our loader, the dataset is a stream "
        "without a state, which can be resumed only between epochs.",
    ),
    pytest.mark.filterwarnings("ignore"),
]
litdata = pytest.importorskip("litdata", reason="litdata is not installed: make ecosystem")


@pytest.fixture
def chunks() -> Any:
    """A function that opens twenty numbers, in chunks of five."""
    from litdata.streaming.writer import BinaryWriter  # type: ignore[import-not-found]

    Path("chunks").mkdir()
    writer = BinaryWriter("chunks", chunk_size=5)
    for number in range(20):
        writer.add_item(number, {"number": number})
    writer.done()
    writer.merge()
    return lambda: litdata.StreamingDataset("chunks", shuffle=True)


def numbers(batches: Any) -> list[int]:
    return [int(number) for batch in batches for number in batch["number"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_samples(workers: int, chunks: Any) -> None:
    """Each sample comes once in each epoch, with any workers."""
    loader: DataLoader[Any] = DataLoader(chunks(), 4, num_workers=workers, seed=3)
    assert [sorted(numbers(loader)) for _ in range(2)] == [[*range(20)]] * 2
    with pytest.raises(ValueError, match="has no load_state_dict"):
        loader.load_state_dict({**loader.state_dict(), "position": 2})


def test_its_own_loader(chunks: Any) -> None:
    """Its own loader goes on from a checkpoint of ours."""
    first, other = (litdata.StreamingDataLoader(chunks(), batch_size=4) for _ in range(2))
    begun = numbers(islice(first, 2))
    save_checkpoint(make_checkpoint("train", 1, nn.Linear(1, 1), loader=first), "last.pth")
    load_checkpoint("last.pth", loader=other)
    assert sorted(begun + numbers(other)) == [*range(20)]
