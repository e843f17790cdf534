"""Crops of a file of tokens, which is mapped into memory and not read as a whole."""

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
    """What crops have in common: each is `length` tokens and the one that follows them."""

    def __init__(self, path: Path, length: int, number: int) -> None:
        self.path = path
        self.length = length
        self.number = number
        self.starts = path.stat().st_size // np.dtype(DTYPE).itemsize - length  # where one fits
        if self.starts < 1:
            raise SystemExit(f"{path} has no more than {length} tokens, which is one crop")

    @cached_property
    def tokens(self) -> np.ndarray[Any, Any]:
        return np.memmap(self.path, dtype=DTYPE, mode="r")  # each worker opens it by itself

    def __len__(self) -> int:
        return self.number

    def crop(self, start: int) -> Tensor:
        return torch.from_numpy(self.tokens[start : start + self.length + 1].astype(np.int64))


class RandomCrops(Tokens):
    """Crops for training. The loader keys what is drawn: crop i depends on the seed and i alone."""

    def __getitem__(self, index: int) -> Tensor:
        return self.crop(int(torch.randint(self.starts, ())))


class EvenCrops(Tokens):
    """Crops for evaluation, always the same ones, from all parts of the file."""

    def __getitem__(self, index: int) -> Tensor:
        return self.crop(index * self.starts // self.number)
