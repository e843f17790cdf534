"""Read any bytes of a checkpoint file, in any order, and verify them."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from torch import Tensor

from batteries import distributed
from batteries._files import PathLike
from batteries._foreign import open_regular
from batteries._modules import sharded_like
from batteries.checkpoint._contents import rebuilt
from batteries.checkpoint._read_outline import (
    CheckpointError,
    check_exists,
    outline_file,
    torch_load,
    unreadable,
)
from batteries.checkpoint._read_safetensors import peek_safetensors
from batteries.checkpoint._seal import (
    DIGEST_LENGTH,
    LONGEST_SEAL,
    Digest,
    find_seal,
    identity,
    note_digest,
)
from batteries.checkpoint._write import formed, is_plain

# A function that says where a tensor goes, from its place and itself: a device, or a DTensor if it
# is to be divided among the ranks like that one. None: it is not read, and stays a meta tensor.
Where = Callable[[str, Tensor], "torch.device | Tensor | None"]

T = TypeVar("T")
_ROWS, _WORDS = Digest.shape  # of a block of the digest
_ROW = 8 * _WORDS  # bytes
SPARE = 2 * _ROW  # bytes of memory that `take` needs in addition to those that it reads
_GAP = 2**16  # storages with at most so many bytes between them are read in one call
_RUN = 2**26  # bytes of storages that share one piece of memory
_ROUND = 2**12  # blocks whose sums the ranks send each other at once


class Stream:
    """The contents of a checkpoint file, and its bytes by their places.

    Do not trust what was read before `verify` has returned. Bytes are summed up while they are
    read, so `verify` reads only the rest. A file of `save_checkpoint` is verified by its digest,
    and a file of `torch.save` by the checksums of its records. Of `.safetensors`, only the header
    and the length are verified.
    """

    @classmethod
    @contextmanager
    def opened(cls, path: PathLike) -> Iterator[Stream]:
        """Open a file until the end of the block."""
        path = Path(path)
        check_exists(path)
        with open_regular(path) as file:
            stream = cls(path, file)
            try:
                yield stream
            except CheckpointError:  # the reason may be that the file is damaged
                stream.verify()
                raise

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self._lock = Lock()
        status = os.fstat(file.fileno())  # not of the path, which may get another file meanwhile
        self._status, self._size = status, status.st_size
        file.seek(max(0, self._size - LONGEST_SEAL))
        self._tensors_alone = path.suffix == ".safetensors"
        self._seal = None if self._tensors_alone else find_seal(file.read())
        self.sealed = self._seal is not None
        self._end = self._size - DIGEST_LENGTH * self.sealed  # the digest is of the bytes before
        blocks = max(0, self._end) // Digest.block if self.sealed or self._tensors_alone else 0
        self._summed = bytearray(blocks * _ROWS)  # 1: a row that was read
        self._row_sums = np.zeros((blocks, _ROWS), np.uint64)
        self._column_sums = np.zeros((blocks, _WORDS), np.uint64)
        self._records: dict[int, int] = {}  # the sizes of storages, by where they begin
        self._usual = True  # if not, objects of other classes may contain tensors
        try:
            self.contents = self._described()
        except CheckpointError:
            if self.sealed:
                self.verify()
            raise

    def read(self, where: Where) -> Any:
        """The contents, with the numbers of the tensors for which `where` gives a place.

        Tensors that shared their memory share it again.
        """
        wanted: dict[int, tuple[Tensor, Any]] = {}

        def choose(value: Any, place: str) -> Any:
            if isinstance(value, Tensor) and (to := where(place, value)) is not None:
                wanted[id(value)] = value, to
            return value

        rebuilt(self.contents, choose)
        tensors = [tensor for tensor, _ in wanted.values()]
        if self.is_foreign() or not self._usual or not all(map(_is_placed, tensors)):
            return self._at_once(where)
        storages = self._storages(tensors)

        def filled(value: Any, place: str) -> Any:  # noqa: ARG001
            if id(value) not in wanted:
                return value
            tensor, to = wanted[id(value)]
            offset = tensor.untyped_storage()._checkpoint_offset
            assert offset is not None
            if isinstance(to, Tensor):
                return sharded_like(formed(storages[offset], tensor), to)
            if storages[offset].device.type != to.type:  # "cuda" does not equal its "cuda:0"
                storages[offset] = storages[offset].to(device=to)
            return formed(storages[offset], tensor)

        return rebuilt(self.contents, filled)

    def _at_once(self, where: Where) -> Any:
        """Load the whole file with torch, for tensors that are more than their bytes."""
        self.verify()
        self._file.seek(0)
        contents = torch_load(self.path, self._file, torch.device("cpu"))

        def moved(value: Any, place: str) -> Any:
            if not isinstance(value, Tensor):
                return value
            to = where(place, value)
            if isinstance(to, Tensor):
                return sharded_like(value, to)
            return value.to("meta" if to is None else to)

        return rebuilt(contents, moved)

    def _storages(self, tensors: Iterable[Tensor]) -> dict[int, torch.UntypedStorage]:
        """The memory of tensors, by where it begins in the file."""
        sizes = {self.offset(t): t.untyped_storage().nbytes() for t in tensors}
        runs: list[list[int]] = []
        for offset in sorted(sizes):
            if sizes[offset] > self._records.get(offset, -1):
                raise unreadable(self.path, "a tensor is larger than its record")
            last = runs[-1][-1] if runs else 0
            near = runs and offset - last - sizes[last] <= _GAP
            if near and offset + sizes[offset] - runs[-1][0] <= _RUN:
                runs[-1].append(offset)
            else:
                runs.append([offset])
        storages = {}

        def read(run: list[int]) -> None:
            begin, size = run[0], run[-1] + sizes[run[-1]] - run[0]
            data = self.take(
                begin, size, torch.empty(size + SPARE, dtype=torch.uint8, device="cpu")
            )
            for offset in run:
                at = int(data.storage_offset()) + offset - begin
                storage = data.untyped_storage()[at : at + sizes[offset]]
                storages[offset] = storage.clone() if at % 16 else storage

        _each(read, runs)
        return storages

    def offset(self, tensor: Tensor) -> int:
        """Where in the file the storage of a tensor of `contents` begins."""
        found = tensor.untyped_storage()._checkpoint_offset
        if found is None:
            raise CheckpointError(
                f"{self.path} has values, such as tensors of a subclass, whose place in the file "
                "only torch 2.11 or newer knows: update torch, or save plain tensors"
            )
        return found

    def take(self, at: int, size: int, room: Tensor) -> Tensor:
        """Read bytes, (size,) uint8, into memory, (at least size + SPARE,) uint8.

        Several threads may call it at once.
        """
        start = at // _ROW * _ROW
        end = min(-(-(at + size) // _ROW) * _ROW, self._size)
        view = memoryview(room.numpy().data)[: max(0, end - start)]
        if at + size > self._size:
            raise self._cut_short()
        while start < end:  # block by block: each is summed up while it is in the cache
            part = view[: Digest.block - start % Digest.block]
            if os.preadv(self._file.fileno(), [part], start) != len(part):
                raise self._cut_short()
            self._sum_up(part, start // _ROW)
            start, view = start + len(part), view[len(part) :]
        first = at % _ROW
        return room[first : first + size]

    def verify(self, *, together: bool = False) -> None:
        """Read the rest, and raise if the file is not as it was written.

        Args:
            together: All ranks call it. Ranks that see the same file divide the bytes that none of
                them has read, and send each other the sums.
        """
        if together and distributed.world_size() > 1:
            share = self._share_out()
            distributed.together(functools.partial(self._check, share))
        else:
            self._check(slice(None))

    def _check(self, share: slice) -> None:
        summed = np.frombuffer(self._summed, np.uint8).reshape(-1, _ROWS)
        self._read_blocks(np.flatnonzero(~summed.all(1)))
        room = torch.empty(Digest.block + SPARE, dtype=torch.uint8, device="cpu")
        if self.sealed or self._tensors_alone:
            digest, whole = Digest(), len(self._row_sums) * Digest.block
            digest.take(np.concatenate((self._row_sums, self._column_sums), 1))
            digest.update(memoryview(self.take(whole, self._end - whole, room).numpy().data))
            found = digest.hex()
        else:
            found = self._check_records(share)
        if self._seal and self._seal.digest != found:
            raise CheckpointError(
                f"{self.path} is damaged: its {self._size} bytes do not have the digest that they "
                "were saved with; use another checkpoint of the run"
            )
        note_digest(self._status, found.decode())

    def _check_records(self, share: slice) -> bytes:
        """Compare records of a zip file with their checksums. Return a digest of all checksums."""
        self._file.seek(0)
        try:
            with zipfile.ZipFile(self._file) as archive:
                records = archive.infolist()
                archive.filelist = records[share]
                broken = archive.testzip()
        except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError) as e:
            raise unreadable(self.path, e) from e
        if broken:
            raise CheckpointError(
                f"{self.path} is damaged: the checksum of its record {broken} is wrong; use "
                "another checkpoint of the run"
            )
        sums = [(record.filename, record.file_size, record.CRC) for record in records]
        return hashlib.blake2b(repr(sums).encode(), digest_size=16).hexdigest().encode()

    def _share_out(self) -> slice:
        """Sum up the blocks that no rank has read, together with the ranks that see the same file.

        Returns:
            Which items of a list are this rank's part, such as the records that it checks.
        """
        summed = np.frombuffer(self._summed, np.uint8).reshape(-1, _ROWS)
        known: Any = summed.any(1)  # of which this rank has read some
        same = platform.node(), *identity(self._status)
        everybody = distributed.all_gather((same, known))
        ranks = [rank for rank, (other, _) in enumerate(everybody) if other == same]
        share = slice(ranks.index(distributed.rank()), None, len(ranks))
        blocks = np.flatnonzero(~np.all([everybody[rank][1] for rank in ranks], 0))[share]
        most = int(distributed.all_reduce(len(blocks), "max"))
        for at in range(0, most, _ROUND):
            part = blocks[at : at + _ROUND]
            distributed.together(functools.partial(self._read_blocks, part))
            sums = part, self._row_sums[part], self._column_sums[part]
            for rank, (theirs, rows, columns) in enumerate(distributed.all_gather(sums)):
                if rank in ranks:
                    new = ~known[theirs]  # a rank uses its own sums for blocks that it has read
                    self._row_sums[theirs[new]] = rows[new]
                    self._column_sums[theirs[new]] = columns[new]
                    summed[theirs[new]] = 1
        return share

    def _read_blocks(self, blocks: Any) -> None:
        def read(some: Any) -> None:
            room = torch.empty(Digest.block + SPARE, dtype=torch.uint8, device="cpu")
            for block in map(int, some):
                self.take(block * Digest.block, Digest.block, room)

        _each(read, np.array_split(blocks, len(blocks) // 64 + 1))

    def _sum_up(self, view: memoryview, first: int) -> None:
        """Add the rows that were not read before to the sums of their blocks."""
        words = np.frombuffer(view[: len(view) // _ROW * _ROW], np.uint64).reshape(-1, _WORDS)
        rows_of = self._row_sums.reshape(-1)
        for begin, end in self._claimed(first, first + len(words)):
            rows = words[begin - first : end - first]
            np.add.reduce(rows, 1, out=rows_of[begin:end])
            columns = np.add.reduce(rows, 0)
            with self._lock:
                self._column_sums[begin // _ROWS] += columns

    def _claimed(self, begin: int, stop: int) -> list[tuple[int, int]]:
        """Claim the rows that no thread has summed up, as ranges that each lie in one block."""
        claimed = []
        with self._lock:
            while (begin := self._summed.find(0, begin, stop)) >= 0:
                edge = min(stop, len(self._summed), (begin // _ROWS + 1) * _ROWS)
                end = self._summed.find(1, begin, edge) % (edge + 1)  # -1: the edge
                self._summed[begin:end] = b"\1" * (end - begin)
                claimed.append((begin, end))
                begin = end
        return claimed

    def _cut_short(self) -> CheckpointError:
        return CheckpointError(
            f"{self.path} is damaged, or was cut short while it was read: use another checkpoint "
            "of the run"
        )

    def is_foreign(self) -> bool:
        """Whether the file was written on a machine with the other byte order."""
        if self._seal:
            return not self._seal.own_byte_order
        if self._tensors_alone:
            return sys.byteorder != "little"
        self._file.seek(0)
        reader: Any = torch._C.PyTorchFileReader(self._file)
        if not reader.has_record("byteorder"):
            return False
        return bool(reader.get_record("byteorder").decode() != sys.byteorder)

    def _described(self) -> Any:
        """The contents, in storages that have `_checkpoint_offset` as torch.load's have."""
        if not self._tensors_alone:
            outline = outline_file(self.path, self._file, placed=True)
            self._usual, self._records = outline.usual, outline.records
            return outline.contents
        weights = peek_safetensors(self.path)  # this verifies the header
        self._file.seek(0)
        (length,) = struct.unpack("<Q", self._file.read(8))
        header = json.loads(self._file.read(length))
        for name, tensor in weights.items():
            begin, end = header[name]["data_offsets"]
            storage = torch.UntypedStorage(end - begin, device="meta")  # type: ignore[no-untyped-call]
            storage._checkpoint_offset = 8 + length + begin
            self._records[8 + length + begin] = end - begin
            empty = torch.empty(0, dtype=tensor.dtype, device="meta")
            weights[name] = empty.set_(storage, 0, tensor.size(), tensor.stride())
        return {"model_state_dict": weights}


def _each(function: Callable[[T], None], values: Sequence[T]) -> None:
    """Call a function with each value, in up to four threads."""
    threads = min(len(values), torch.get_num_threads(), 4)
    if threads < 2:
        for value in values:
            function(value)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(function, values):
            pass


def _is_placed(tensor: Tensor) -> bool:
    return is_plain(tensor) and tensor.untyped_storage()._checkpoint_offset is not None
