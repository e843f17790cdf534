"""Write a checkpoint: the zip file of torch.save, whole or absent, faster, and with a seal."""

from __future__ import annotations

import errno
import io
import mmap
import os
import pickle
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from batteries._files import PathLike, write_whole
from batteries._preemption import timed_save
from batteries.checkpoint._contents import as_checkpoint, plain_or_refused, rebuilt, registered
from batteries.checkpoint._seal import Digest, Note, comment_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_CHUNK = 2**22  # bytes that are written at once; a multiple of the digest's blocks


def save_checkpoint(
    checkpoint: Mapping[str, Any], path: PathLike, note: dict[str, Any] | None = None
) -> None:
    """Write a checkpoint. The file is complete or absent, whatever happens meanwhile.

    >>> save_checkpoint({"model_state_dict": nn.Linear(2, 1).state_dict(), "epoch": 1}, "last.pth")
    >>> torch.load("last.pth")["epoch"]
    1

    Plain `torch.load(path)` opens it anywhere. A digest of the whole file is in the comment at its
    end, and `load_checkpoint` verifies it. Call this on one rank.

    Args:
        note: Plain values that `read_note` returns without reading the whole file.

    Raises:
        TypeError: A value that `torch.load` would refuse, with its place. Nothing is written then.
        OSError: With the path, the cause, the bytes needed and the bytes free.
    """
    if isinstance(checkpoint, str | os.PathLike):
        raise TypeError("the path comes second: save_checkpoint(checkpoint, path)")
    leaves: list[Any] = []

    def leaf(value: Any, place: str) -> Any:
        leaves.append(plain_or_refused(value, place))
        return leaves[-1]

    plain = as_checkpoint(rebuilt(checkpoint, leaf))
    with timed_save(), write_whole(path, _bytes_in(leaves)) as file:
        _write_archive(plain, file, note or {}, leaves)


def _bytes_in(leaves: Sequence[Any]) -> int:
    dense = [leaf for leaf in leaves if isinstance(leaf, Tensor) and is_plain(leaf)]
    storages = (tensor.untyped_storage() for tensor in dense)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _write_archive(checkpoint: Any, file: BinaryIO, note: Note, leaves: Sequence[Any]) -> None:
    """Write the file of torch.save, with a seal at its end.

    Other threads run while tensors are written. torch.save would block them while it writes and
    sums up each record.

    Args:
        leaves: `leaves_of(checkpoint)`.
    """
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    kinds = [kind for kind in registered().values() if isinstance(kind, type)]
    dense = all(map(_is_dense, tensors)) and not any(type(leaf) in kinds for leaf in leaves)
    skeleton = _Skeleton()
    with torch.serialization.skip_data() if dense else nullcontext():
        torch.save(checkpoint, skeleton, pickle_module=_PICKLE)  # type: ignore[arg-type]
    # As torch numbers them: tensors that share their memory share a record.
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors if dense}
    numbered = list(storages.values())
    sums: dict[bytes, bytes] = {}
    comment = comment_of(note)
    *texts, end = skeleton.texts
    with ThreadPoolExecutor(1) as pool:
        stream = _Stream(file, pool)
        for text, gap, after in zip(texts, skeleton.gaps, skeleton.texts[1:], strict=True):
            stream.write(text)
            name = _last_name(text)
            data = storage_bytes(numbered[int(name.rpartition(b"/")[2])]).cpu().numpy()
            assert data.nbytes == gap, "torch.save numbers storages as it meets them"
            assert after[:4] == b"PK\7\10", "torch puts the sum of a record after it"
            after[4:8] = sums[name] = struct.pack("<I", stream.write(data))
        _put_sums(end, sums)
        end[-2:] = comment  # torch's file has no comment and ends in its length, 0
        stream.write(end)
        stream.end()


class _Pickler(pickle.Pickler):
    """Notes the CPU as the place of each tensor, so that torch.load needs no GPU."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        made = value.__reduce_ex__(2)  # type: ignore[no-untyped-call]
        _place_on_cpu(made)
        return made


def _place_on_cpu(made: Any) -> None:
    if isinstance(made, torch.storage.TypedStorage):
        made._fake_device = "cpu"  # type: ignore[assignment]  # one text, which is written once
    elif isinstance(made, tuple):
        for part in made:
            _place_on_cpu(part)


_PICKLE = ModuleType("pickle")  # torch.save takes its pickler from a module
vars(_PICKLE)["Pickler"] = _Pickler


def leaves_of(checkpoint: Any) -> list[Any]:
    """The values of a checkpoint that are not containers, in the order of the pickle."""
    found: list[Any] = []
    rebuilt(checkpoint, lambda value, _: found.append(value))
    return found


def storage_bytes(storage: torch.UntypedStorage) -> Tensor:
    """The bytes of a storage as a tensor, (size,) uint8, without a copy."""
    data = torch.empty(0, dtype=torch.uint8, device=storage.device)
    return data.set_(storage, 0, (storage.nbytes(),), (1,))


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is only a strided view of the bytes of its storage."""
    return _is_dense(tensor) and not (tensor.is_conj() or tensor.is_neg())


def _is_dense(tensor: Tensor) -> bool:
    own = type(tensor) in (Tensor, nn.Parameter)  # subclasses may be made of several tensors
    return own and tensor.layout == torch.strided and not tensor.is_quantized


class Form(NamedTuple):
    """How a tensor lies in its memory."""

    dtype: torch.dtype
    offset: int
    size: torch.Size
    stride: tuple[int, ...]
    requires_grad: bool
    learned: bool  # a parameter


def form_of(tensor: Tensor) -> Form:
    return Form(
        tensor.dtype,
        int(tensor.storage_offset()),
        tensor.size(),
        tensor.stride(),
        tensor.requires_grad,
        isinstance(tensor, nn.Parameter),
    )


def formed(storage: torch.UntypedStorage, form: Form) -> Tensor:
    """A tensor of that form in other memory."""
    empty = torch.empty(0, dtype=form.dtype, device=storage.device)
    same = empty.set_(storage, form.offset, form.size, form.stride)
    if form.learned:
        return nn.Parameter(same, form.requires_grad)
    return same.requires_grad_(form.requires_grad)


class _Skeleton:
    """The output of torch.save without the tensors: bytes, and the sizes of gaps."""

    def __init__(self) -> None:
        self.texts = [bytearray()]
        self.gaps: list[int] = []  # one after each text except the last

    def write(self, data: bytes) -> int:
        self.texts[-1] += data
        return len(data)

    def seek(self, offset: int, whence: int) -> None:
        assert whence == io.SEEK_CUR
        self.gaps.append(offset)
        self.texts.append(bytearray())

    def flush(self) -> None:
        pass


def _last_name(text: bytearray) -> bytes:
    """The name of the last record whose header is in a part of a zip file."""
    header = text.rindex(b"PK\3\4")
    (length,) = struct.unpack_from("<H", text, header + 26)
    return bytes(text[header + 30 : header + 30 + length])


def _put_sums(end: bytearray, sums: dict[bytes, bytes]) -> None:
    """Put the CRC-32 of records into the directory at the end of a zip file."""
    last = len(end) - 98  # three records of fixed size; the first has the directory's size
    assert end[last : last + 4] == b"PK\6\6", "torch writes zip64"
    (size,) = struct.unpack_from("<Q", end, last + 40)
    at = last - size
    while at < last:
        name, extra, comment = struct.unpack_from("<HHH", end, at + 28)
        crc = sums.get(bytes(end[at + 46 : at + 46 + name]))
        if crc is not None:
            end[at + 16 : at + 20] = crc
        at += 46 + name + extra + comment


class _Stream:
    """A new file, written from beginning to end, without the page cache where possible.

    Bytes are gathered in aligned memory and summed up there while they are in the processor's
    cache. Meanwhile another thread writes the last piece.
    """

    def __init__(self, file: BinaryIO, pool: Executor) -> None:
        self._file = file.fileno()
        self._pool = pool
        self._rooms = [np.frombuffer(mmap.mmap(-1, _CHUNK), np.uint8) for _ in range(2)]
        self._filled = 0  # bytes of the first room; the other room is being written
        self._wait: Callable[[], None] = _nothing
        self._digest = Digest()
        _set_direct(self._file, True)

    def write(self, data: Any) -> int:
        """Add bytes, and return their CRC-32."""
        view = np.frombuffer(data, np.uint8)
        crc = zlib.crc32(view.data)
        while len(view):
            room = self._rooms[0][self._filled : self._filled + len(view)]
            np.copyto(room, view[: len(room)])
            self._filled += len(room)
            view = view[len(room) :]
            if self._filled == _CHUNK:
                self._hand_over()
        return crc

    def end(self) -> None:
        """Write the rest, and the digest of all bytes."""
        rest = self._rooms[0][: self._filled]
        self._digest.update(rest)
        self._wait()
        _set_direct(self._file, False)  # direct writes take only whole blocks
        _write_all(self._file, rest.tobytes() + self._digest.hex())

    def _hand_over(self) -> None:
        chunk = self._rooms[0]
        self._wait()
        self._wait = _begun(self._pool, _write_all, self._file, chunk)
        self._digest.update(chunk)
        self._rooms.reverse()
        self._filled = 0


def _begun(pool: Executor, function: Callable[..., None], *args: Any) -> Callable[[], None]:
    try:
        return pool.submit(function, *args).result
    except RuntimeError:  # python is ending, and starts no more threads
        function(*args)
        return _nothing


def _nothing() -> None:
    pass


def _write_all(file: int, data: Any) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(file, view) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not _set_direct(file, False):
                raise
        if view:  # the disk is full, say, or needs other blocks: a buffered write tells which
            _set_direct(file, False)


def _set_direct(file: int, direct: bool) -> bool:
    """Write without the page cache or with it. Returns whether that is a change."""
    flag = getattr(os, "O_DIRECT", 0)
    before = fcntl.fcntl(file, fcntl.F_GETFL) if flag else 0
    after = before | flag if direct else before & ~flag
    try:
        return before != after and fcntl.fcntl(file, fcntl.F_SETFL, after) == 0
    except OSError:  # a file system in memory, say
        return False
