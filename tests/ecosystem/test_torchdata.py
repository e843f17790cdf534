"""torchdata's loaders, resumed by our checkpoints and accumulated by our windows."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from batteries import accumulate, load_checkpoint, make_checkpoint, save_checkpoint

REASON = "torchdata is not installed: requirements-ecosystem.txt"
trees = pytest.importorskip("torchdata.nodes", reason=REASON)
loaders = pytest.importorskip("torchdata.stateful_dataloader", reason=REASON)
pytestmark = [
    pytest.mark.beside("torchdata"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),
]


def nodes() -> Any:
    return trees.Loader(trees.Batcher(trees.IterableWrapper(range(80)), batch_size=4))


def stateful(workers: int = 0) -> Any:
    return loaders.StatefulDataLoader(list(range(80)), batch_size=4, num_workers=workers)


def numbers(batches: Any) -> list[int]:
    return [int(number) for batch in batches for number in batch]


def through_a_file(loader: Any, other: Any, tmp_path: Path) -> Any:
    model = nn.Linear(1, 1)
    save_checkpoint(make_checkpoint("train", 1, model, loader=loader), tmp_path / "last.pth")
    load_checkpoint(tmp_path / "last.pth", model, loader=other)
    return other


@pytest.mark.parametrize("made", [nodes, stateful])
def test_a_loader_goes_on(made: Any, tmp_path: Path) -> None:
    """After 7 of 20 batches and a resume, 13 batches are left."""
    loader = made()
    seen = numbers(islice(loader, 7))
    other = through_a_file(loader, made(), tmp_path)
    assert seen + numbers(other) == [*range(80)]


@pytest.mark.parametrize("made", [nodes, stateful, lambda: stateful(2)])
def test_a_state_inside_a_window(made: Any, tmp_path: Path) -> None:
    """A state inside a window resumes with its first batch, one after it with the next batch."""
    for done, first in ((6, 16), (8, 32)):
        loader = made()
        pairs = iter(accumulate(loader, nn.Identity(), 4, count=len))
        for _ in range(done):
            next(pairs)
        other = through_a_file(loader, made(), tmp_path)
        assert numbers(other)[0] == first


def test_batches_that_fail() -> None:
    """`accumulate` continues after a batch that fails in a `StatefulDataLoader`."""

    def read(numbers: list[int]) -> list[int]:
        if 5 in numbers:
            raise OSError("5 is damaged")
        return numbers

    loader = loaders.StatefulDataLoader(list(range(20)), batch_size=2, collate_fn=read)
    pairs = iter(accumulate(loader, nn.Identity(), 3, count=len))
    seen = [(batch[0], window.closed) for batch, window in islice(pairs, 2)]
    with pytest.raises(OSError, match="5 is damaged"):
        next(pairs)
    seen += [(batch[0], window.closed) for batch, window in pairs]
    closing = {2, 10, 16, 18}
    assert seen == [(number, number in closing) for number in range(0, 20, 2) if number != 4]
