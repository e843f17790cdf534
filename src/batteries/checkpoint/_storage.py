"""How a checkpoint is stored: whole or absent, sealed with a digest, verified when read."""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from batteries._files import PathLike, kind_of, write_whole
from batteries._foreign import open_regular
from batteries.checkpoint._archive import INDEX, Note, is_plain, write_archive
from batteries.checkpoint._contents import Checkpoint, plain_or_refused, rebuilt
from batteries.checkpoint._inspection import inspect_contents, inspect_file, is_usual, storages_in
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


def identity_of(path: PathLike) -> Any:
    """What a checkpoint is known by, under any of its names; None where there is none."""
    try:
        status = Path(path).stat()
        status = Path(path, INDEX).stat() if stat.S_ISDIR(status.st_mode) else status
    except OSError:
        return None
    return identity(status)


def digest_read(path: PathLike) -> str | None:
    """The digest of a checkpoint if this process has read it as it is now."""
    return _read.get(identity_of(path))


def identity(status: os.stat_result) -> tuple[int, ...]:
    """What a file is known by, unless it is written over within the clock's ticks."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def note_digest(status: os.stat_result, digest: str) -> None:
    """Keep in mind what this process has read, and verified."""
    _read[identity(status)] = digest
    if len(_read) > _MOST:
        del _read[next(iter(_read))]


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
        return outline_file(path, file).contents  # type: ignore[no-any-return]


class Outline(NamedTuple):
    """What a file says that is in it."""

    contents: Any  # with meta tensors
    usual: bool  # whether no class makes it that only programs have made known to torch
    records: dict[int, int]  # the sizes of storages, by where they begin


def outline_file(path: Path, file: BinaryIO, *, placed: bool = False) -> Outline:
    """What is in an open file, of which no number is read.

    Args:
        placed: The storages know where they begin in the file, `_checkpoint_offset`.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        pickled, records = inspect_file(file, size)
        storages = storages_in(file, records) if placed else {}
        begins = {name: begin for name, (begin, _) in storages.items()}
        try:
            contents = outline(pickled, begins if placed else None)
        except Unknown:
            check_cost(pickled)
            file.seek(0)
            contents = load_shapes(path, file, pickled)
        inspect_contents(contents, size, pickled)
    except Suspicious as error:
        raise unreadable(path, error) from error
    return Outline(contents, is_usual(pickled), dict(storages.values()))


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
