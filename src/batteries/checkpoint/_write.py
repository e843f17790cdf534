"""Write a checkpoint: the zip file of torch.save, whole or absent, faster, and with a seal."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import pickle
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from batteries._files import PathLike, write_whole
from batteries._preemption import timed_save
from batteries.checkpoint._contents import as_checkpoint, plain_or_refused, rebuilt
from batteries.checkpoint._read_safely import why_endless
from batteries.checkpoint._seal import Digest, Note, check_note, comment_of

_CHUNK = 2**22  # bytes that are written at once; a multiple of the digest's blocks
_SMALL = 2**10  # bytes of pieces that are put together first, such as the headers of records


def save_checkpoint(
    checkpoint: Mapping[str, Any], path: PathLike, note: dict[str, Any] | None = None
) -> None:
    """Write a checkpoint. At each moment the path has the complete file, or what it had before.

    >>> save_checkpoint({"model_state_dict": nn.Linear(2, 1).state_dict(), "epoch": 1}, "last.pth")
    >>> torch.load("last.pth")["epoch"]
    1

    Plain `torch.load(path)` opens it anywhere. A digest of the whole file is in the comment at its
    end, and `load_checkpoint` verifies it. Call this on one rank.

    Args:
        note: A dictionary of values that JSON can hold. `read_note` returns it without reading the
            whole file. Its keys become strings, and its tuples lists.

    Raises:
        TypeError: A value that `torch.load` would refuse, or two keys that become the same key,
            with the place. Or the same values are in too many places. Or a note that is no
            dictionary, or that JSON cannot hold. Nothing is written then.
        ValueError: The note takes more than about 65,000 bytes, is nested more than 64 deep, or
            contains itself.
        FileNotFoundError: There is no directory for the file.
        OSError: The file cannot be written. The message has the path, the cause and, if the disk is
            full, the bytes needed and the bytes free.
    """
    if isinstance(checkpoint, str | os.PathLike):
        raise TypeError("the path comes second: save_checkpoint(checkpoint, path)")
    note = {} if note is None else note
    check_note(note)
    plain = as_checkpoint(rebuilt(checkpoint, plain_or_refused))
    with timed_save(), write_whole(path, _bytes_in(plain)) as file:
        write_archive(plain, file, note)


def _bytes_in(checkpoint: Any) -> int:
    leaves = leaves_of(checkpoint)
    dense = [leaf for leaf in leaves if isinstance(leaf, Tensor) and is_plain(leaf)]
    storages = (tensor.untyped_storage() for tensor in dense)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def write_archive(checkpoint: Any, file: BinaryIO, note: Note) -> None:
    """Write the file of torch.save, with a seal at its end.

    Other threads run meanwhile. If torch.save opened the file itself, they would have to wait.
    """
    comment = comment_of(note)
    with ThreadPoolExecutor(1) as pool:
        stream = _Stream(file, pool)
        torch.save(checkpoint, stream, pickle_module=_PICKLE)  # type: ignore[arg-type]
        stream.end(comment)


class _Pickler(pickle.Pickler):
    """Writes the CPU as the device of each tensor, so that torch.load needs no GPU."""

    def __init__(self, file: BinaryIO, *args: Any, **kwargs: Any) -> None:
        super().__init__(file, *args, **kwargs)
        self._file = file

    def dump(self, value: Any) -> None:
        super().dump(value)
        if why := why_endless(value, self._file.tell()):
            raise TypeError(
                f"a checkpoint cannot hold this: {why}, because the same values are in many "
                "places, and readers would refuse the file; store such a value once"
            )

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

    def note(value: Any, place: str) -> Any:  # noqa: ARG001
        found.append(value)
        return value

    rebuilt(checkpoint, note)
    return found


def storage_bytes(storage: torch.UntypedStorage) -> Tensor:
    """The bytes of a storage as a tensor, (size,) uint8, without a copy."""
    data = torch.empty(0, dtype=torch.uint8, device=storage.device)
    return data.set_(storage, 0, (storage.nbytes(),), (1,))


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is only a strided view of the bytes of its storage."""
    own = type(tensor) in (Tensor, nn.Parameter)  # subclasses may be made of several tensors
    dense = own and tensor.layout == torch.strided and not tensor.is_quantized
    return dense and not (tensor.is_conj() or tensor.is_neg())


def formed(storage: torch.UntypedStorage, like: Tensor) -> Tensor:
    """A tensor in this storage, with the dtype, offset, shape and strides of another tensor."""
    empty = torch.empty(0, dtype=like.dtype, device=storage.device)
    same = empty.set_(storage, int(like.storage_offset()), like.size(), like.stride())
    if isinstance(like, nn.Parameter):
        return nn.Parameter(same, like.requires_grad)
    return same.requires_grad_(like.requires_grad)


class _Stream:
    """A new file, written from beginning to end, without the page cache where possible.

    Bytes are gathered in aligned memory. They are summed up there while they are in the processor's
    cache. Meanwhile another thread writes the previous piece.
    """

    def __init__(self, file: BinaryIO, pool: Executor) -> None:
        self._file = file.fileno()
        self._pool = pool
        self._rooms = [np.frombuffer(mmap.mmap(-1, _CHUNK), np.uint8) for _ in range(2)]
        self._filled = 0  # bytes of the first room; the other room is being written
        self._wait: Callable[[], None] = _nothing
        self._digest = Digest()
        self._held = bytearray()  # the last bytes, of which two may still be replaced
        self._error: BaseException | None = None
        _set_direct(self._file, True)

    def write(self, data: Any) -> None:
        """Add bytes. `end` raises their errors, since torch would replace them by another error."""
        if self._error is None:
            try:
                self._add(data)
            except BaseException as error:
                self._error = error

    def flush(self) -> None:
        """Torch calls it."""

    def end(self, comment: bytes) -> None:
        """Replace the empty comment, which is the last two bytes. Write the rest and the digest."""
        if self._error is not None:
            raise self._error
        self._put(self._held[:-2] + comment)
        rest = self._rooms[0][: self._filled]
        self._digest.update(rest)
        self._wait()
        _set_direct(self._file, False)  # direct writes take only whole blocks
        _write_all(self._file, rest.tobytes() + self._digest.hex())

    def _add(self, data: memoryview) -> None:
        if len(data) < _SMALL and len(self._held) < _CHUNK:
            self._held += data
        else:
            self._put(self._held)
            self._put(data[:-2])
            self._held = bytearray(data[-2:])

    def _put(self, data: Any) -> None:
        view = np.frombuffer(data, np.uint8)
        while len(view):
            room = self._rooms[0][self._filled : self._filled + len(view)]
            np.copyto(room, view[: len(room)])
            self._filled += len(room)
            view = view[len(room) :]
            if self._filled == _CHUNK:
                self._hand_over()

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
        if view:  # the disk is full, or needs other blocks: a buffered write tells which
            _set_direct(file, False)


def _set_direct(file: int, direct: bool) -> bool:
    """Write without the page cache or with it. Returns whether that is a change."""
    flag = getattr(os, "O_DIRECT", 0)  # macOS has none
    before = fcntl.fcntl(file, fcntl.F_GETFL)
    after = before | flag if direct else before & ~flag
    try:
        return before != after and fcntl.fcntl(file, fcntl.F_SETFL, after) == 0
    except OSError:  # for example, a file system in memory
        return False
