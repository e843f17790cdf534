"""What a checkpoint file says that is in it, before anything of it is believed."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from batteries._files import PathLike, kind_of
from batteries._foreign import open_regular
from batteries.checkpoint._contents import Checkpoint, rebuilt
from batteries.checkpoint._read_pickle import OldFormat, Suspicious, Unknown, check_cost, outline
from batteries.checkpoint._read_safely import inspect_contents, inspect_file, is_usual, storages_in


class CheckpointError(ValueError):
    """A file that is not a checkpoint, is damaged, or does not fit these objects."""


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
