"""How a checkpoint is stored: whole or absent, sealed with a digest, verified when read."""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from batteries._device import known_device
from batteries._files import PathLike, kind_of, write_whole
from batteries._foreign import open_regular
from batteries.checkpoint._archive import (
    DIGEST_LENGTH,
    INDEX,
    LONGEST_SEAL,
    Digest,
    Note,
    find_seal,
    form_of,
    formed,
    is_plain,
    write_archive,
)
from batteries.checkpoint._contents import Checkpoint, plain_or_refused, rebuilt
from batteries.checkpoint._inspection import inspect_contents, inspect_file, is_usual, offsets_in
from batteries.checkpoint._outline import OldFormat, Suspicious, Unknown, check_cost, outline

_MOST = 1000
_read: dict[Any, str] = {}  # what this process has read last, and the digests of that


class CheckpointError(ValueError):
    """A file that is not a checkpoint, is damaged, or does not fit these objects."""


def save_checkpoint(
    checkpoint: Mapping[str, Any], path: PathLike, note: Note | None = None
) -> None:
    """Write a checkpoint so that the file is complete or absent, whatever happens meanwhile.

    >>> save_checkpoint({"model_state_dict": nn.Linear(2, 1).state_dict(), "epoch": 1}, "last.pth")
    >>> torch.load("last.pth")["epoch"]
    1

    Plain `torch.load(path)` opens it anywhere. A digest of the whole file stands in the comment
    at its end, and `load_checkpoint` verifies it. Call it on one rank.

    Args:
        note: Plain values to find with `read_note`, without reading the file.

    Raises:
        TypeError: A value that `torch.load` would refuse to read, with its place; nothing has
            been written then.
        OSError: With the path, the cause, the bytes needed and the bytes free.
    """
    if isinstance(checkpoint, str | os.PathLike):
        raise TypeError("the path comes second: save_checkpoint(checkpoint, path)")
    leaves: list[Any] = []

    def leaf(value: Any, place: str) -> Any:
        leaves.append(plain_or_refused(value, place))
        return leaves[-1]

    plain = rebuilt(checkpoint, leaf)
    with write_whole(path, _bytes_in(leaves)) as file:
        write_archive(plain, file, note or {}, leaves)


def _bytes_in(leaves: Iterable[Any]) -> int:
    dense = [leaf for leaf in leaves if isinstance(leaf, Tensor) and is_plain(leaf)]
    storages = (tensor.untyped_storage() for tensor in dense)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def read_file(path: PathLike, map_location: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint file whose every byte is as it was written.

    The bytes that are verified are the bytes that the tensors lie in. A file that carries no
    digest (of `torch.save`, say) is held against the checksums of its zip records.

    Raises:
        FileNotFoundError: No such file.
        ValueError: An unknown `map_location`.
        CheckpointError: Damaged, cut short, or not a checkpoint.
    """
    path = Path(path)
    check_exists(path)
    checkpoint, sealed = _read_verified(path, known_device(map_location))
    if isinstance(checkpoint, Mapping):
        states = [v for v in checkpoint.values() if isinstance(v, Mapping) and v and is_state(v)]
        if sealed or states or "model_state_dict" in checkpoint:
            return dict(checkpoint)
    if isinstance(checkpoint, Mapping) and checkpoint and is_state(checkpoint):
        warnings.warn(
            f"{path} is the bare state dict of a model: no epoch, optimizer or metrics in it",
            stacklevel=4,
        )
        return {"model_state_dict": checkpoint}
    found = list(checkpoint) if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
    raise CheckpointError(
        f"{path} is not a checkpoint: expected a dict with 'model_state_dict' or the like, or the "
        f"state dict of a model; found {str(found)[:300]}"
    )


def identity_of(path: PathLike) -> Any:
    """What a checkpoint is known by, under any of its names; None where there is none."""
    try:
        status = Path(path).stat()
        status = Path(path, INDEX).stat() if stat.S_ISDIR(status.st_mode) else status
    except OSError:
        return None
    return _identity(status)


def digest_read(path: PathLike) -> str | None:
    """The digest of a checkpoint if this process has read it as it is now."""
    return _read.get(identity_of(path))


def _identity(status: os.stat_result) -> Any:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def is_state(state: Mapping[Any, Any]) -> bool:
    """Whether a dict is the bare state dict of a model."""
    return all(isinstance(v, Tensor) or str(k).endswith("_extra_state") for k, v in state.items())


def peek_file(path: PathLike) -> Checkpoint:
    """What is in a checkpoint file, with meta tensors; nothing is verified.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: Not a checkpoint.
    """
    path = Path(path)
    check_exists(path)
    with open_regular(path) as file:
        found: Checkpoint = outline_file(path, file)
    return found


def outline_file(path: Path, file: BinaryIO, *, placed: bool = False) -> Any:
    """What is in an open file, with meta tensors.

    Args:
        placed: Their storages know where they begin in the file, `_checkpoint_offset`.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        pickled, records = inspect_file(file, size)
        try:
            contents = outline(pickled, offsets_in(file, records) if placed else None)
        except Unknown:
            check_cost(pickled)
            file.seek(0)
            contents = load_shapes(path, file, pickled)
        inspect_contents(contents, size, pickled)
    except Suspicious as error:
        raise unreadable(path, error) from error
    return contents


# ---------------------------------------------------------------- reading


def check_exists(path: Path) -> None:
    """Raise if there is no such file; say what is there."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; expected a checkpoint file in it")
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is a {kind_of(path.stat().st_mode)}; expected a file")
    if not path.exists():
        beside = sorted(other.name for other in path.parent.glob("*.pth"))
        raise FileNotFoundError(
            f"there is no checkpoint {path}; {path.parent} has {', '.join(beside) or 'none'}"
        )


def _read_verified(path: Path, device: torch.device) -> tuple[Any, bool]:
    """The contents of a file, and whether it was sealed by `save_checkpoint`."""
    with open_regular(path) as buffered:
        size = os.fstat(buffered.fileno()).st_size  # another file may take the name meanwhile
        buffered.seek(max(0, size - LONGEST_SEAL))
        data = _room(path, size, buffered.read())  # for all: the tensors will lie in there
        buffered.seek(0)
        file = buffered.raw
        view = memoryview(data.numpy().data)
        digest, signed = Digest(), size - DIGEST_LENGTH
        # Block by block, so that each is hashed while the processor still has it.
        for start in range(0, size, Digest.block):
            part = view[start : min(start + Digest.block, size)]
            if file.readinto(part) != len(part):
                raise CheckpointError(f"{path} was cut short while it was read")
            digest.update(part[: max(0, signed - start)])
        _read[_identity(os.fstat(buffered.fileno()))] = digest.hex().decode()
        if len(_read) > _MOST:
            del _read[next(iter(_read))]
    seal = find_seal(bytes(view[-LONGEST_SEAL:]))
    if seal is not None and seal.digest != digest.hex():
        raise CheckpointError(
            f"{path} is damaged: its {size} bytes do not have the digest that they were saved "
            "with; go back to another checkpoint of the run"
        )
    try:
        pickled, _ = inspect_file(_View(data), size)  # type: ignore[arg-type]
        check_cost(pickled)
        if seal is None:
            check_records(path, _View(data))  # type: ignore[arg-type]
        in_place = seal is not None and seal.own_byte_order and device.type == "cpu"
        contents = _contents(path, data, pickled, device, in_place)
        inspect_contents(contents, size, pickled)
    except CheckpointError:
        raise
    except (Suspicious, RuntimeError, TypeError, ValueError) as found:
        # what has the right digest but the wrong insides: tensors beyond their storage, say
        raise unreadable(path, found) from found
    return contents, seal is not None


def _room(path: Path, size: int, end: bytes) -> Tensor:
    """Memory for a file, (size,) uint8, if it ends as a zip file does."""
    try:
        if b"PK\5\6" not in end and size > LONGEST_SEAL:
            raise RuntimeError("File is not a zip file")
        return torch.empty(size, dtype=torch.uint8)
    except RuntimeError as error:  # torch's of no memory
        raise unreadable(path, error) from error


def _contents(
    path: Path, data: Tensor, pickled: bytes, device: torch.device, in_place: bool
) -> Any:
    if in_place and _SPARSE not in pickled and is_usual(pickled):
        with suppress(_NeedsCopy):
            return _views(path, data)
    return torch_load(path, _View(data), device)


def unreadable(path: Path, reason: object) -> CheckpointError:
    """The error about a file that is not what it should be."""
    if isinstance(reason, OldFormat):
        return CheckpointError(
            f"{path} has the format that torch.save had before torch 1.6, of which nothing can be "
            f"verified; convert it once: torch.save(torch.load({str(path)!r}, weights_only=True), "
            "'converted.pth')"
        )
    first_line = (str(reason).splitlines() or [type(reason).__name__])[0]
    remedy = "it is damaged, or was not written by save_checkpoint or torch.save"
    if called := re.fullmatch(r"it would call ([\w.]+) ([\w.]+)", first_line):
        kind = ".".join(called.groups())
        remedy = (
            "if you know who wrote it, and that this is a class that only holds values, call "
            f"torch.serialization.add_safe_globals([{kind}]) first"
        )
    return CheckpointError(f"{path} cannot be read as a checkpoint: {first_line}; {remedy}")


def check_records(path: Path, file: BinaryIO) -> None:
    """Hold a zip file that carries no digest against the checksums of its records."""
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise unreadable(path, error) from error
    if broken:
        raise CheckpointError(
            f"{path} is damaged: the checksum of its record {broken} is wrong; leave it out, or "
            "go back to another checkpoint of the run"
        )


class _View(io.RawIOBase):
    """A tensor of bytes as a file, without a copy."""

    def __init__(self, data: Tensor) -> None:
        self._data = memoryview(data.numpy().data)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        part = self._data[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


_SPARSE = b"_rebuild_sparse_tensor"


def load_shapes(path: Path, file: Any, pickled: bytes) -> Any:
    """As `torch_load`, with meta tensors."""
    if _SPARSE not in pickled:
        return torch_load(path, file, torch.device("meta"))
    # Torch 2.14 looks at the numbers of sparse tensors, and on the meta device there are none.
    loaded = torch_load(path, file, torch.device("cpu"))
    return rebuilt(loaded, lambda v, place: v.to("meta") if isinstance(v, Tensor) else v)  # noqa: ARG005


def torch_load(path: Path, file: Any, device: torch.device) -> Any:
    """What torch reads in a file, or a `CheckpointError`."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Validating sparse tensor invariants")
            return torch.load(file, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of many kinds, as damage has
        # torch says what it refuses in the middle of advice to trust the file
        refused = re.search(r"Unsupported [^.]*?GLOBAL \S+|Unsupported operand \d+", str(error))
        raise unreadable(path, refused[0] if refused else error) from error


class _NeedsCopy(Exception):  # noqa: N818 (not an error: the slower way)
    """A tensor that is more than a view of bytes in the file."""


def _views(path: Path, data: Tensor) -> Any:
    """A checkpoint whose tensors are views of the bytes of its file."""
    structure = torch_load(path, _View(data), torch.device("meta"))
    storages: dict[int, torch.UntypedStorage] = {}

    def filled(value: Any, place: str) -> Any:  # noqa: ARG001
        return _filled(value, data, storages) if isinstance(value, Tensor) else value

    return rebuilt(structure, filled)


def _filled(value: Tensor, data: Tensor, storages: dict[int, torch.UntypedStorage]) -> Tensor:
    offset = value.untyped_storage()._checkpoint_offset if is_plain(value) else None
    if offset is None:
        raise _NeedsCopy
    if offset not in storages:  # tensors that shared their memory share it again
        size = value.untyped_storage().nbytes()
        storages[offset] = data.untyped_storage()[offset : offset + size]
    return formed(storages[offset], form_of(value))
