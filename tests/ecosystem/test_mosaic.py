from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
from torch import nn

from batteries import load_checkpoint, make_checkpoint, save_checkpoint
from batteries.data import DataLoader

REMEDY = (
    "Its `StreamingDataLoader` can be resumed. In our loader, the dataset is a stream without a "
    "state. Do not iterate over the dataset in the main process before workers are forked: its "
    "locks do not allow this, as in torch's loader. The package requires older versions of numpy "
    "and transformers than those of this page, so it was installed with `--no-deps`."
)
pytestmark = [
    pytest.mark.beside("mosaicml-streaming", remedy=REMEDY),
    pytest.mark.filterwarnings("ignore"),
]
streaming = pytest.importorskip(
    "streaming", reason="mosaicml-streaming is not installed: make ecosystem"
)


@pytest.fixture
def shards() -> Any:
    """A function that opens twenty numbers, in several shards."""
    with streaming.MDSWriter(out="shards", columns={"number": "int"}, size_limit=64) as writer:
        for number in range(20):
            writer.write({"number": number})
    streaming.base.util.clean_stale_shared_memory()
    return lambda: streaming.StreamingDataset(local="shards", batch_size=4, shuffle=True)


def numbers(batches: Any) -> list[int]:
    return [int(number) for batch in batches for number in batch["number"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_samples(workers: int, shards: Any) -> None:
    """Each sample comes once in each epoch, with any workers."""
    loader: DataLoader[Any] = DataLoader(shards(), 4, num_workers=workers, seed=3)
    assert [sorted(numbers(loader)) for _ in range(2)] == [[*range(20)]] * 2
    with pytest.raises(ValueError, match="has no load_state_dict"):
        loader.load_state_dict({**loader.state_dict(), "position": 2})


def test_its_own_loader(shards: Any) -> None:
    """Its own loader goes on from a checkpoint of ours."""
    first, other = (streaming.StreamingDataLoader(shards(), batch_size=4) for _ in range(2))
    begun = numbers(islice(first, 2))
    save_checkpoint(make_checkpoint("train", 1, nn.Linear(1, 1), loader=first), "last.pth")
    load_checkpoint("last.pth", loader=other)
    assert sorted(begun + numbers(other)) == [*range(20)]
