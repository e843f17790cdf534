"""A checkpoint file of which any bytes are read, in any order and little memory, and verified."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from batteries._files import PathLike
from batteries._foreign import open_regular
from batteries.checkpoint._archive import DIGEST_LENGTH, LONGEST_SEAL, Digest, find_seal
from batteries.checkpoint._contents import Checkpoint
from batteries.checkpoint._forms import peek
from batteries.checkpoint._storage import (
    CheckpointError,
    check_exists,
    check_records,
    outline_file,
)

_ROWS, _WORDS = Digest.shape  # of a block of the digest
_ROW = 8 * _WORDS  # bytes
SPARE = 2 * _ROW  # bytes of memory that `read` needs beside those that it is asked for
_preadv = getattr(os, "preadv", None)  # Windows has none


class Stream:
    """What is in a checkpoint, and its bytes, by their places.

    A file of `save_checkpoint` is held against its digest at the end of the block: until then
    nothing that was read may be believed. What was read is summed up on the way, and not read
    again for that. One of `torch.save` is held against the checksums of its records at the
    beginning, for which it is read once more. `.safetensors` have nothing to be held against but
    their lengths.
    """

    @classmethod
    @contextmanager
    def opened(cls, path: PathLike) -> Iterator[Stream]:
        """A file that is closed behind the block, and verified there.

        Raises:
            FileNotFoundError: No such file.
            CheckpointError: Damaged, cut short, or not a checkpoint.
        """
        path = Path(path)
        check_exists(path)
        with open_regular(path) as file:
            stream = cls(path, file)
            yield stream
            stream.verify()

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self._lock = Lock()
        self._size = os.fstat(file.fileno()).st_size
        file.seek(max(0, self._size - LONGEST_SEAL))
        tensors_alone = path.suffix == ".safetensors"
        self._seal = None if tensors_alone else find_seal(file.read())
        blocks = max(0, self._size - DIGEST_LENGTH) // Digest.block if self._seal else 0
        self._summed = bytearray(blocks * _ROWS)  # 1: a row that was read
        self._row_sums = np.zeros(blocks * _ROWS, np.uint64)
        self._column_sums = np.zeros((blocks, _WORDS), np.uint64)
        if tensors_alone:
            self.contents = _in_safetensors(path, file)
        else:
            self.contents = outline_file(path, file, placed=True)
        if not (self._seal or tensors_alone):
            check_records(path, file)
        if self._is_foreign():
            raise CheckpointError(
                f"{path} was written on a machine of the other byte order: load it here, and save "
                "it with save_checkpoint"
            )

    def offset(self, tensor: Tensor) -> int:
        """Where in the file the storage of a tensor of `contents` begins.

        Raises:
            CheckpointError: Torch 2.10 does not know it.
        """
        found = tensor.untyped_storage()._checkpoint_offset
        if found is None:
            raise CheckpointError(
                f"{self.path} has values, such as tensors of a subclass, whose place torch tells "
                "from 2.11 on: update torch, or save plain tensors"
            )
        return found

    def read(self, at: int, size: int, room: Tensor) -> Tensor:
        """Bytes of the file, (size,) uint8, in (at least size + SPARE,) uint8 of memory.

        Threads may call it side by side.

        Raises:
            CheckpointError: The file ends before them.
        """
        first, last = at // _ROW, -(-(at + size) // _ROW)
        start, end = first * _ROW, min(last * _ROW, self._size)
        view = memoryview(room.numpy().data)[: max(0, end - start)]
        if at + size > self._size or self._read_into(view, start) != len(view):
            raise CheckpointError(f"{self.path} is damaged, or was cut short while it was read")
        self._sum_up(view, first)
        return room[at - start : at - start + size]

    def verify(self) -> None:
        """Raise if the file is not as it was written; what was not read yet is read now.

        Raises:
            CheckpointError: It is damaged.
        """
        if self._seal is None:
            return
        digest, room = Digest(), torch.empty(Digest.block + SPARE, dtype=torch.uint8)
        while (row := self._summed.find(0)) >= 0:
            self.read(row // _ROWS * Digest.block, Digest.block, room)
        rows = self._row_sums.reshape(-1, _ROWS)
        digest.take(np.concatenate((rows, self._column_sums), 1))
        whole = len(self._column_sums) * Digest.block
        rest = self.read(whole, self._size - DIGEST_LENGTH - whole, room)
        digest.update(memoryview(rest.numpy().data))
        if self._seal.digest != digest.hex():
            raise CheckpointError(
                f"{self.path} is damaged: its {self._size} bytes do not have the digest that they "
                "were saved with; leave it out"
            )

    def _sum_up(self, view: memoryview, first: int) -> None:
        """Add the rows that were not read before to the sums of their blocks."""
        words = np.frombuffer(view[: len(view) // _ROW * _ROW], np.uint64).reshape(-1, _WORDS)
        for begin, end in self._claimed(first, first + len(words)):
            rows = words[begin - first : end - first]
            np.add.reduce(rows, 1, out=self._row_sums[begin:end])
            columns = np.add.reduce(rows, 0)
            with self._lock:
                self._column_sums[begin // _ROWS] += columns

    def _claimed(self, begin: int, stop: int) -> list[tuple[int, int]]:
        """Which of some rows nobody has summed up, from one to another of the same block."""
        claimed = []
        with self._lock:
            while (begin := self._summed.find(0, begin, stop)) >= 0:
                edge = min(stop, len(self._summed), (begin // _ROWS + 1) * _ROWS)
                end = self._summed.find(1, begin, edge) % (edge + 1)  # -1: the edge
                self._summed[begin:end] = b"\1" * (end - begin)
                claimed.append((begin, end))
                begin = end
        return claimed

    def _read_into(self, view: memoryview, start: int) -> int:
        if _preadv is not None:
            return int(_preadv(self._file.fileno(), [view], start))
        with self._lock:
            self._file.seek(start)
            return self._file.readinto(view)  # type: ignore[attr-defined,no-any-return]

    def _is_foreign(self) -> bool:
        if self._seal:
            return not self._seal.own_byte_order
        if self.path.suffix == ".safetensors":
            return sys.byteorder != "little"
        self._file.seek(0)
        reader: Any = torch._C.PyTorchFileReader(self._file)
        if not reader.has_record("byteorder"):
            return False
        return bool(reader.get_record("byteorder").decode() != sys.byteorder)


def _in_safetensors(path: Path, file: BinaryIO) -> Checkpoint:
    """What is in a file of safetensors, in storages that know their places as torch.load's do."""
    contents = peek(path)  # which verifies the header
    file.seek(0)
    (length,) = struct.unpack("<Q", file.read(8))
    header = json.loads(file.read(length))
    weights = contents["model_state_dict"]
    for name, tensor in weights.items():
        begin, end = header[name]["data_offsets"]
        storage = torch.UntypedStorage(end - begin, device="meta")  # type: ignore[no-untyped-call]
        storage._checkpoint_offset = 8 + length + begin
        empty = torch.empty(0, dtype=tensor.dtype, device="meta")
        weights[name] = empty.set_(storage, 0, tensor.size(), tensor.stride())
    return contents
