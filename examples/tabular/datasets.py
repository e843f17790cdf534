"""The table in the form that models need: numbers with NaN, codes of categories, and tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

CATEGORIES = ["city", "channel"]
NUMBERS = ["age", "income", "items", "price", "wait", "day of the year"]


class Table(NamedTuple):
    numbers: NDArray[np.float64]  # (rows, numbers), NaN if a value is missing
    codes: NDArray[np.int64]  # (rows, categories), 0 for a new category

    def of(self, rows: NDArray[np.int64]) -> Table:
        return Table(self.numbers[rows], self.codes[rows])

    @property
    def features(self) -> NDArray[np.float64]:
        """Numbers and then codes: (rows, features)."""
        return np.concatenate([self.numbers, self.codes], axis=1)


def load(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Load the table for training, and the table of the test."""
    train, test = (
        pl.read_csv(folder / f"{name}.csv", try_parse_dates=True) for name in ("train", "test")
    )
    return train, test


def prepare(train: pl.DataFrame, test: pl.DataFrame) -> tuple[Table, Table, list[int]]:
    """Return both tables, and the number of codes of each column. Targets are not used."""
    known = [sorted(set(train[name].drop_nulls())) for name in CATEGORIES]
    parts = []
    for table in (train, test):
        year = table["date"].dt.ordinal_day().alias("day of the year")
        numbers = table.with_columns(year).select(pl.col(NUMBERS).cast(pl.Float64))
        codes = [
            [1 + values.index(value) if value in values else 0 for value in table[name]]
            for name, values in zip(CATEGORIES, known, strict=True)
        ]
        parts.append(Table(numbers.to_numpy().copy(), np.array(codes).T))
    return parts[0], parts[1], [len(values) + 1 for values in known]


class Rows(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Standardized numbers, codes and the target of each row.

    Args:
        like: The training rows, whose means and standard deviations are used.
    """

    def __init__(self, table: Table, like: Table, targets: NDArray[Any] | None = None) -> None:
        mean, spread = np.nanmean(like.numbers, 0), np.nanstd(like.numbers, 0)
        scaled = (table.numbers - mean) / spread
        gone = np.isnan(scaled)
        both = np.concatenate([np.where(gone, 0, scaled).clip(-4, 4), gone], axis=1)
        self.numbers = torch.tensor(both, dtype=torch.float32)
        self.codes = torch.tensor(table.codes)
        self.targets = torch.tensor(np.zeros(len(both)) if targets is None else targets).float()

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.numbers[row], self.codes[row], self.targets[row]
