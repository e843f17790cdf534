"""Hugging Face's datasets: map-style and iterable, resumed, with workers."""

from __future__ import annotations

import random
from itertools import islice
from typing import Any

import pytest

from batteries.data import DataLoader

REASON = "datasets is not installed: requirements-ecosystem.txt"
hub = pytest.importorskip("datasets", reason=REASON)
pytestmark = pytest.mark.beside(
    "datasets",
    remedy='Map-style datasets work as they are. Pass `sharded="workers"` for iterable ones.',
    cannot="After a resume, the items in the buffer of an iterable dataset's `shuffle` are lost.",
)


def as_it_is(samples: Any) -> Any:
    return samples


def noisy(row: dict[str, Any]) -> dict[str, Any]:
    return {"x": row["x"], "noise": [random.random() for _ in row["x"]]}


def rows(kind: str) -> Any:
    data = hub.Dataset.from_dict({"x": list(range(40))})
    if kind == "iterable":
        return data.to_iterable_dataset(num_shards=4)  # shuffled ones lose what their buffers have
    return data.with_transform(noisy) if kind == "with a transform" else data


def loader(kind: str, workers: int = 0) -> Any:
    options: dict[str, Any] = {"collate_fn": as_it_is, "seed": 3, "num_workers": workers}
    if kind == "iterable":
        return DataLoader(rows(kind), 4, sharded="workers", **options)
    return DataLoader(rows(kind), 4, shuffle=True, **options)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["plain", "with a transform", "iterable"])
def test_rows(kind: str, workers: int) -> None:
    """Each comes once in an epoch, shuffled anew in the next, and a state goes on in it."""
    data = loader(kind, workers)
    expected, later = list(data), list(data)
    assert sorted(row["x"] for batch in expected for row in batch) == [*range(40)]
    assert (expected == later) == (kind == "iterable")
    first, other = loader(kind, workers), loader(kind, workers)
    assert list(islice(first, 4)) == expected[:4]
    other.load_state_dict(first.state_dict())
    assert list(other) == expected[4:]


def test_the_check_of_samples() -> None:
    """Rows of a data set, and what its transform draws, pass the check."""
    loader("plain").check()
    loader("with a transform", 2).check()


def test_a_transform_that_is_set_late() -> None:
    """A transform that a data set gets after its loader was made draws by keys too."""
    draws = []
    for _ in range(2):
        data = rows("plain")
        late = DataLoader(data, 4, shuffle=True, seed=3)
        data.set_transform(noisy)
        draws.append([batch["noise"].tolist() for batch in late])
    assert draws[0] == draws[1]
