"""Crops of a file of tokens. The file is mapped into memory, so it may be large."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

VOCABULARY = 256  # a token is a byte
DTYPE = np.uint8  # np.uint16 for the tokens of a larger vocabulary


class Tokens(Dataset[Tensor]):
    """The base class. A crop has `length` tokens and the token after them."""

    def __init__(self, path: Path, length: int, number: int) -> None:
        self.path = path
        self.length = length
        self.number = number
        self.starts = path.stat().st_size // np.dtype(DTYPE).itemsize - length  # possible starts
        if self.starts < 1:
            raise SystemExit(f"{path} has at most {length} tokens, which is too short for a crop")

    @cached_property
    def tokens(self) -> np.ndarray[Any, Any]:
        return np.memmap(self.path, dtype=DTYPE, mode="r")  # each worker opens the file itself

    def __len__(self) -> int:
        return self.number

    def crop(self, start: int) -> Tensor:
        return torch.from_numpy(self.tokens[start : start + self.length + 1].astype(np.int64))


class RandomCrops(Tokens):
    """Random crops for training. The loader seeds torch, so crop i depends only on seed and i."""

    def __getitem__(self, index: int) -> Tensor:
        return self.crop(int(torch.randint(self.starts, ())))


class EvenCrops(Tokens):
    """Crops for evaluation, from all parts of the file. They are always the same."""

    def __getitem__(self, index: int) -> Tensor:
        return self.crop(index * self.starts // self.number)
