"""The zip file that torch.save writes, written faster, and its seal."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import mmap
import os
import struct
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from batteries.checkpoint.contents import rebuilt
from batteries.files import PathLike, naming

Note = dict[str, Any]  # what a file says about itself, as JSON
INDEX = "index.pth"  # what stands for a directory of shards


def write_archive(checkpoint: Any, file: BinaryIO, note: Note) -> None:
    """Write what torch.save would, with a seal at its end.

    >>> with open("a.pth", "x+b") as file:
    ...     write_archive({"epoch": 1}, file, note={})
    >>> torch.load("a.pth")
    {'epoch': 1}

    Tensors go to the file in calls during which other threads run: torch.save keeps the
    interpreter to itself while it writes and sums up each record.
    """
    tensors = tensors_in(checkpoint)
    if all(tensor.layout == torch.strided and not tensor.is_quantized for tensor in tensors):
        with torch.serialization.skip_data():  # leaves room for the tensors
            torch.save(checkpoint, file)
        _fill(file, tensors)
    else:
        torch.save(checkpoint, file)
    _seal(file, note)


def tensors_in(checkpoint: Any) -> list[Tensor]:
    """The tensors of a checkpoint in the order in which they are pickled.

    >>> tensors_in({"a": [torch.tensor(1)], "b": torch.tensor(2)})
    [tensor(1), tensor(2)]
    """
    found: list[Tensor] = []

    def keep(value: Any, place: str) -> Any:  # noqa: ARG001
        if isinstance(value, Tensor):
            found.append(value)
        return value

    rebuilt(checkpoint, keep)
    return found


def storage_bytes(storage: torch.UntypedStorage) -> Tensor:
    """The bytes of a storage as a tensor, (size,) uint8, without a copy.

    >>> storage_bytes(torch.zeros(2).untyped_storage()).shape
    torch.Size([8])
    """
    data = torch.empty(0, dtype=torch.uint8, device=storage.device)
    return data.set_(storage, 0, (storage.nbytes(),), (1,))


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is a strided view of the bytes of its storage, and no more.

    >>> is_plain(torch.zeros(2, 3).t()), is_plain(torch.eye(2).to_sparse())
    (True, False)
    """
    more = tensor.layout != torch.strided or tensor.is_quantized
    return not (more or tensor.is_conj() or tensor.is_neg())


def like(tensor: Tensor, storage: torch.UntypedStorage) -> Tensor:
    """A tensor of the same form on other memory.

    >>> like(torch.zeros(2), torch.ones(2).untyped_storage())
    tensor([1., 1.])
    """
    shape = tensor.storage_offset(), tensor.size(), tensor.stride()
    same = torch.empty(0, dtype=tensor.dtype).set_(storage, *shape)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(same, tensor.requires_grad)
    return same.requires_grad_(tensor.requires_grad)


def _fill(file: BinaryIO, tensors: list[Tensor]) -> None:
    """Put the bytes of tensors where torch.save left room for them."""
    # As torch numbers them: tensors that share their memory share a record.
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}.values()
    records, directory = _records(file)
    numbered = {name.rpartition("/data/")[2]: record for name, record in records.items()}
    sums: dict[int, Callable[[], int]] = {}
    begun = 0  # up to where the disk was told to begin
    with ThreadPoolExecutor(1) as other:  # sums up what this thread writes
        for number, storage in enumerate(storages):
            record = numbered[str(number)]
            data = storage_bytes(storage).cpu().numpy().data
            assert len(data) == record.size, "torch.save numbers storages as it meets them"
            file.seek(record.offset)
            sums[record.offset] = _begun(other, zlib.crc32, data)
            file.write(data)
            if record.offset + len(data) >= begun + 4 * 2**20:
                file.flush()
                begun = _begin_writeback(file, begun, record.offset + len(data))
    for record in records.values():
        if record.size and record.offset in sums:
            _write_checksum(file, record, directory, sums[record.offset]())


def _begun(pool: Executor, function: Callable[[Any], int], data: Any) -> Callable[[], int]:
    if threading.current_thread() is not threading.main_thread():
        return functools.partial(function, data)  # nobody waits, and training has the other cores
    try:
        return pool.submit(function, data).result
    except RuntimeError:  # python is ending, and begins no more threads
        return functools.partial(function, data)


def _begin_writeback(file: BinaryIO, start: int, end: int) -> int:
    """Let the disk begin while the processor goes on: less is left to wait for at the end."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # it is advice
            os.posix_fadvise(file.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)
    return end


class _Record(NamedTuple):
    """Where a file in a zip file lies."""

    offset: int  # of its data
    size: int
    entry: int  # in the directory at the end


def _records(file: BinaryIO) -> tuple[dict[str, _Record], int]:
    """The records of a zip file of torch.save, and where its directory begins."""
    with zipfile.ZipFile(file) as archive:
        infos, directory = archive.infolist(), archive.start_dir
    file.seek(directory)
    entries, at = file.read(), 0
    records = {}
    for info in infos:
        file.seek(info.header_offset + 26)
        offset = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
        records[info.filename] = _Record(offset, info.file_size, at)
        at += 46 + sum(struct.unpack_from("<HHH", entries, at + 28))
    return records, directory


def _write_checksum(file: BinaryIO, record: _Record, directory: int, crc: int) -> None:
    """Put the CRC-32 of a record where zip files have it."""
    file.seek(directory + record.entry + 16)
    file.write(struct.pack("<I", crc))
    file.seek(record.offset + record.size)
    assert file.read(4) == b"PK\7\10", "torch puts the sum behind the data too"
    file.seek(record.offset + record.size + 4)
    file.write(struct.pack("<I", crc))


# ---------------------------------------------------------------- the seal

# A zip file may end in a comment, which torch.load reads past. Ours is
#     batteries little {"epoch":3} digest:0123...
# with the byte order, the note, and the digest of all bytes before it. It is known by its
# beginning or its end, so that no one flipped bit makes it look like a file without a seal.
_MARK, _DIGEST_MARK = b"batteries ", b" digest:"
_OWN_MARK = _MARK + sys.byteorder.encode() + b" "
DIGEST_LENGTH = 32  # hexadecimal digits
_SEAL_LENGTH = len(_DIGEST_MARK) + DIGEST_LENGTH
_END_OF_ZIP, _END_LENGTH = b"PK\5\6", 22  # the record whose last field is the comment's length
_LONGEST_COMMENT = 65_535
LONGEST_SEAL = _END_LENGTH + _LONGEST_COMMENT


class Seal(NamedTuple):
    """What stands at the end of a file.

    >>> Seal(note={}, digest=b"0123", own_byte_order=True).note
    {}
    """

    note: Note
    digest: bytes
    own_byte_order: bool


def _seal(file: BinaryIO, note: Note) -> None:
    comment = _OWN_MARK + json.dumps(note, separators=(",", ":")).encode() + _DIGEST_MARK
    length = len(comment) + DIGEST_LENGTH
    if length > _LONGEST_COMMENT:
        raise ValueError(f"the note of a checkpoint takes {length} bytes, more than 65,535")
    end = file.seek(-2, io.SEEK_END)  # torch writes no comment: the file ends in its length, 0
    file.write(struct.pack("<H", length) + comment)
    file.flush()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as written:
        digest = Digest()
        digest.update(written)
    file.seek(end + 2 + len(comment))
    file.write(digest.hex())


def find_seal(tail: bytes) -> Seal | None:
    """The seal in the last bytes of a file; None where there is none.

    >>> find_seal(b"a file of something else") is None
    True
    """
    comment = tail[tail.rfind(_END_OF_ZIP) + _END_LENGTH :]
    text, mark = comment[:-_SEAL_LENGTH], tail[-_SEAL_LENGTH:-DIGEST_LENGTH]
    if not comment.startswith(_MARK) and mark != _DIGEST_MARK:
        return None
    try:
        note = json.loads(text[text.find(b"{") :])
    except ValueError:
        note = {}  # damaged, as the digest will say
    return Seal(note, tail[-DIGEST_LENGTH:], comment.startswith(_OWN_MARK))


def read_note(path: PathLike) -> Note | None:
    """The note that a checkpoint was saved with; None if it carries none.

    >>> save_checkpoint({"model_state_dict": {}}, "last.pth", note={"epoch": 1})
    >>> read_note("last.pth")
    {'epoch': 1}
    """
    seal = read_seal(path)
    return seal.note if seal else None


def read_seal(path: PathLike) -> Seal | None:
    """The seal of a checkpoint; None if it has none.

    >>> save_checkpoint({"model_state_dict": {}}, "last.pth", note={"epoch": 1})
    >>> read_seal("last.pth").note
    {'epoch': 1}
    """
    path = Path(path)
    if path.is_dir():
        path = path / INDEX
        if not path.exists():
            return None
    with naming(path), path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - LONGEST_SEAL))
        return find_seal(file.read())


class Digest:
    """A digest at the speed of memory: it notices damage, not forgery.

    >>> digest = Digest()
    >>> digest.update(b"some bytes")
    >>> len(digest.hex())
    32

    Each block of 1 MiB is a matrix of 64-bit words whose rows and columns are added up, modulo
    2**64; the sums are hashed. A change of any one word changes a sum, words that change places
    change two.
    """

    block = 2**20
    _shape = (256, 512)

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=DIGEST_LENGTH // 2)

    def update(self, data: Any) -> None:
        """Take in bytes; all calls but the last with a multiple of `block`."""
        view = memoryview(data).cast("B")
        whole = len(view) // self.block * self.block
        for start in range(0, whole, self.block):
            words = np.frombuffer(view[start : start + self.block], np.uint64).reshape(self._shape)
            self._hash.update(words.sum(1).data)
            self._hash.update(words.sum(0).data)
        self._hash.update(view[whole:])

    def hex(self) -> bytes:
        return self._hash.hexdigest().encode()
