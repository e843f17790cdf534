"""Rows in files of other libraries, each opened where it is read."""

from __future__ import annotations

import sqlite3
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import Dataset

from batteries.data import DataLoader

ROWS = np.random.default_rng(0).normal(size=(40, 3))


def h5py() -> Any:
    library = pytest.importorskip("h5py", reason="h5py is not installed: make ecosystem")
    if not Path("rows.h5").exists():
        with library.File("rows.h5", "w") as file:
            file["rows"] = ROWS
    return library.File("rows.h5")["rows"].__getitem__


def zarr() -> Any:
    library = pytest.importorskip("zarr", reason="zarr is not installed: make ecosystem")
    if not Path("rows.zarr").exists():
        library.save_array("rows.zarr", ROWS)
    return library.open_array("rows.zarr", mode="r").__getitem__


def polars() -> Any:
    import polars as library

    if not Path("rows.parquet").exists():
        library.DataFrame(ROWS).write_parquet("rows.parquet")
    return library.read_parquet("rows.parquet").row


def sqlite() -> Any:
    new = not Path("rows.db").exists()
    base = sqlite3.connect("rows.db")
    if new:
        with base:
            base.execute("create table rows (a, b, c)")
            base.executemany("insert into rows values (?, ?, ?)", ROWS.tolist())
    return lambda i: base.execute("select * from rows where rowid = ?", [i + 1]).fetchone()


class Rows(Dataset[Any]):
    def __init__(self, opened: Any) -> None:
        self.opened = opened
        self.read: Any = None

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> Any:
        self.read = self.read or self.opened()
        return index, np.asarray(self.read(index))


FORKS = (
    'Pass `multiprocessing_context="spawn"`: threads of polars do not survive a fork, so a forked '
    "worker that opens a file waits for ever, as in torch's loader."
)


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize(
    "opened",
    [
        pytest.param(h5py, marks=pytest.mark.beside("h5py")),
        pytest.param(zarr, marks=pytest.mark.beside("zarr")),
        pytest.param(polars, marks=pytest.mark.beside("polars", remedy=FORKS)),
        pytest.param(sqlite, marks=pytest.mark.beside("sqlite3")),
    ],
)
def test_rows(opened: Any) -> None:
    """Two workers open the file, each row comes once, and a loader resumes inside it."""
    opened()
    data, how = Rows(opened), "spawn" if opened is polars else "fork"
    options: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": how}
    first, other = (DataLoader(data, 4, shuffle=True, seed=3, **options) for _ in range(2))
    batches = list(islice(first, 4))
    other.load_state_dict(first.state_dict())
    seen = [pair for batch in [*batches, *other] for pair in zip(*batch, strict=True)]
    assert sorted(int(index) for index, _ in seen) == [*range(len(ROWS))]
    for index, row in seen:
        assert row.tolist() == ROWS[index].tolist()
