"""A checkpoint file read once, from its beginning to its end, in little memory."""

from __future__ import annotations

import json
import os
import struct
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import torch
from torch import Tensor

from batteries._files import PathLike
from batteries._foreign import open_regular
from batteries.checkpoint._archive import DIGEST_LENGTH, LONGEST_SEAL, Digest, Seal, find_seal
from batteries.checkpoint._contents import Checkpoint
from batteries.checkpoint._forms import peek
from batteries.checkpoint._inspection import inspect_contents, inspect_file
from batteries.checkpoint._outline import Suspicious, Unknown, check_cost, outline
from batteries.checkpoint._storage import CheckpointError, check_exists, load_shapes, unreadable

BLOCK = Digest.block
_preadv = getattr(os, "preadv", None)  # Windows has none


class Stream:
    """What is in a checkpoint, and its bytes, a block at a time.

    >>> save_checkpoint({"model_state_dict": {"weight": torch.ones(2)}}, "a.pth")
    >>> with Stream.opened("a.pth") as stream:
    ...     weight = stream.contents["model_state_dict"]["weight"]
    ...     stream.cursor().read(stream.offset(weight), 8).view(torch.float32)
    tensor([1., 1.])

    A file of `save_checkpoint` is held against its digest at the end of the block: until then
    nothing that was read may be believed. What cursors have read is not read again for that. One
    of `torch.save` is held against the checksums of its records at the beginning, for which it is
    read once more. `.safetensors` have nothing to be held against but their lengths.
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
        self._sums: dict[int, bytes] = {}  # of the blocks that were read, for the digest
        self._seal: Seal | None = None
        if path.suffix == ".safetensors":
            self.contents = _in_safetensors(path, file)
            foreign = sys.byteorder != "little"
        else:
            self.contents = self._in_archive(file)
            foreign = self._is_foreign(file)
        if foreign:
            raise CheckpointError(
                f"{path} was written on a machine of the other byte order: load it here, and save "
                "it with save_checkpoint"
            )

    def offset(self, tensor: Tensor) -> int:
        """Where in the file the storage of a tensor of `contents` begins."""
        found = tensor.untyped_storage()._checkpoint_offset
        assert found is not None, "torch says it of storages on the meta device"
        return found

    def cursor(self) -> Cursor:
        """A place in the file to read from: one for each thread."""
        return Cursor(self)

    def read_block(self, index: int, room: Tensor) -> int:
        """Read one block into (BLOCK,) uint8, sum it up for the digest; how many bytes it has."""
        start = index * BLOCK
        size = min(BLOCK, self._size - start)
        view = memoryview(room.numpy().data)[: max(0, size)]
        with self._lock if _preadv is None else nullcontext():
            if size <= 0 or self._read_into(view, start) != size:
                raise CheckpointError(f"{self.path} was cut short while it was read")
        if self._seal is not None and start + BLOCK <= self._signed:
            self._sums[index] = Digest.sums(view)
        return size

    def verify(self) -> None:
        """Raise if the file is not as it was written; what was not read yet is read now.

        Raises:
            CheckpointError: It is damaged.
        """
        if self._seal is None:
            return
        digest, room = Digest(), torch.empty(BLOCK, dtype=torch.uint8)
        whole, rest = divmod(self._signed, BLOCK)
        for index in range(whole):
            if index not in self._sums:
                self.read_block(index, room)
            digest.take(self._sums[index])
        if rest:
            self.read_block(whole, room)
            digest.update(memoryview(room.numpy().data)[:rest])
        if self._seal.digest != digest.hex():
            raise CheckpointError(
                f"{self.path} is damaged: its {self._size} bytes do not have the digest that they "
                "were saved with; leave it out"
            )

    @property
    def _signed(self) -> int:
        return self._size - DIGEST_LENGTH

    def _read_into(self, view: memoryview, start: int) -> int:
        if _preadv is not None:
            return int(_preadv(self._file.fileno(), [view], start))
        self._file.seek(start)
        return self._file.readinto(view)  # type: ignore[attr-defined,no-any-return]

    def _in_archive(self, file: BinaryIO) -> Any:
        file.seek(max(0, self._size - LONGEST_SEAL))
        self._seal = find_seal(file.read())
        try:
            pickled = inspect_file(file, self._size)
            try:
                contents = outline(pickled, _offsets_in(file))
            except Unknown:
                check_cost(pickled)
                file.seek(0)
                contents = load_shapes(self.path, file, pickled)
            inspect_contents(contents, self._size, pickled)
        except Suspicious as error:
            raise unreadable(self.path, error) from error
        if self._seal is None:
            self._check_records(file)
        return contents

    def _check_records(self, file: BinaryIO) -> None:
        file.seek(0)
        try:
            with zipfile.ZipFile(file) as archive:
                broken = archive.testzip()
        except (zipfile.BadZipFile, EOFError, ValueError, RuntimeError) as error:
            raise unreadable(self.path, error) from error
        if broken:
            raise CheckpointError(
                f"{self.path} is damaged: the checksum of its record {broken} is wrong; leave it "
                "out"
            )

    def _is_foreign(self, file: BinaryIO) -> bool:
        if self._seal and not self._seal.own_byte_order:
            return True
        file.seek(0)
        reader: Any = torch._C.PyTorchFileReader(file)
        if not reader.has_record("byteorder"):
            return False
        return bool(reader.get_record("byteorder").decode() != sys.byteorder)


def _offsets_in(file: BinaryIO) -> dict[str, int]:
    """Where the records of storages begin, by their names in the pickle."""
    file.seek(0)
    offsets = {}
    with zipfile.ZipFile(file) as archive:
        for record in archive.infolist():
            _, found, name = record.filename.rpartition("/data/")
            if found:
                file.seek(record.header_offset + 26)  # behind the header, a name and padding
                lengths = struct.unpack("<HH", file.read(4))
                offsets[name] = record.header_offset + 30 + sum(lengths)
    return offsets


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


class Cursor:
    """A place in a file, with the block that lies there.

    >>> save_checkpoint({"model_state_dict": {}}, "a.pth")
    >>> with Stream.opened("a.pth") as stream:
    ...     bytes(stream.cursor().read(0, 2).tolist())
    b'PK'
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._block = torch.empty(BLOCK, dtype=torch.uint8)
        self._index, self._size = -1, 0

    def room(self, at: int) -> int:
        """How many bytes `read` gives at most from there."""
        return BLOCK - at % BLOCK

    def read(self, at: int, size: int) -> Tensor:
        """Bytes of the file, (size,) uint8; the memory is used again for the next block.

        Raises:
            CheckpointError: The file ends before them.
        """
        index, start = divmod(at, BLOCK)
        if index != self._index:
            self._size = self._stream.read_block(index, self._block)
            self._index = index
        if start + size > self._size:
            raise CheckpointError(f"{self._stream.path} is damaged: a tensor ends behind its end")
        return self._block[start : start + size]
