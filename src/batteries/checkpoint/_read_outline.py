"""What a checkpoint file contains, read without loading it."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from batteries._files import kind_of
from batteries.checkpoint._contents import rebuilt
from batteries.checkpoint._read_pickle import OldFormat, Suspicious, Unknown, check_calls, outline
from batteries.checkpoint._read_safely import inspect_contents, inspect_file, storages_in


class CheckpointError(ValueError):
    """A file is damaged, is not a checkpoint, or does not fit; or a manager refuses to save."""


def is_state(state: Mapping[Any, Any]) -> bool:
    """Whether a dict is the bare state dict of a model."""
    return all(isinstance(v, Tensor) or str(k).endswith("_extra_state") for k, v in state.items())


class Outline(NamedTuple):
    """The contents of a file, without its numbers."""

    contents: Any  # with meta tensors
    usual: bool  # whether it has only values that most checkpoints have
    records: dict[int, int]  # the sizes of storages, by where they begin


def outline_file(path: Path, file: BinaryIO, *, placed: bool = False) -> Outline:
    """The contents of an open file. The numbers in its tensors are not read.

    Args:
        placed: Whether the storages have `_checkpoint_offset`: where they begin in the file.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        pickled, records = inspect_file(file, size)
        storages = storages_in(file, records) if placed else {}
        begins = {name: begin for name, (begin, _) in storages.items()}
        usual = True
        try:
            contents = outline(pickled, begins if placed else None)
        except Unknown:
            usual = False
            check_calls(pickled)
            file.seek(0)
            contents = load_shapes(path, file, pickled)
        inspect_contents(contents, size, pickled)
    except Suspicious as error:
        raise unreadable(path, error) from error
    return Outline(contents, usual, dict(storages.values()))


# ---------------------------------------------------------------- reading


def check_exists(path: Path) -> None:
    """Raise if there is no such file, and say what is there."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; expected a checkpoint file in it")
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is a {kind_of(path.stat().st_mode)}; expected a file")
    if path.is_symlink() and not path.exists():
        raise CheckpointError(
            f"{path} is a link to {path.readlink()}, which does not exist; copy that too, or use "
            "another checkpoint of the run"
        )
    if not path.exists():
        beside = sorted(other.name for other in path.parent.glob("*.pth"))
        found = f"{path.parent} has {', '.join(beside) or 'no .pth file'}"
        if not path.parent.is_dir():
            found = f"there is no directory {path.parent}"
        raise FileNotFoundError(f"there is no checkpoint {path}; {found}")


# Numbers and arrays of numpy need all of these, under the names of numpy 1 and 2.
_HOME = "numpy._core" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else "numpy.core"
_OF_NUMPY = (
    "numpy.dtype, numpy.ndarray, *{type(numpy.dtype(code)) for code in '?bhilqBHILQefdU'}, "
    f"*((getattr({_HOME}.multiarray, name), home + '.multiarray.' + name) "
    "for name in ('scalar', '_reconstruct') for home in ('numpy.core', 'numpy._core'))"
)


def unreadable(path: Path, reason: object) -> CheckpointError:
    if isinstance(reason, OldFormat):
        return CheckpointError(
            f"{path} has the format of torch.save before torch 1.6, which cannot be verified; "
            f"convert it once: torch.save(torch.load({str(path)!r}, weights_only=True), "
            "'converted.pth')"
        )
    first_line = (str(reason).splitlines() or [type(reason).__name__])[0]
    remedy = "it is damaged, or was not written by save_checkpoint or torch.save"
    if called := re.fullmatch(r"it would call ([\w.]+) ([\w.]+)", first_line):
        kind = ".".join(called.groups())
        needed = _OF_NUMPY if kind.startswith("numpy.") else kind
        remedy = (
            "if you trust the file's author, and this class only holds values, call "
            f"torch.serialization.add_safe_globals([{needed}]) first"
        )
    if first_line.startswith("Unsupported operand"):
        remedy = (
            "it may have been written with pickle_protocol=4 or 5, which torch.load reads only "
            "with weights_only=False; if you trust the file's author, load it so, and save it "
            "again without pickle_protocol="
        )
    return CheckpointError(f"{path} cannot be read as a checkpoint: {first_line}; {remedy}")


_SPARSE = b"_rebuild_sparse_tensor"


def load_shapes(path: Path, file: Any, pickled: bytes) -> Any:
    if _SPARSE not in pickled:
        return torch_load(path, file, torch.device("meta"))
    # Torch 2.14 reads the numbers of sparse tensors, so the meta device does not work.
    loaded = torch_load(path, file, torch.device("cpu"))
    return rebuilt(loaded, lambda v, place: v.to("meta") if isinstance(v, Tensor) else v)  # noqa: ARG005


def torch_load(path: Path, file: Any, device: torch.device) -> Any:
    """`torch.load`, whose errors become a `CheckpointError`."""
    try:
        with warnings.catch_warnings():
            for known in (
                "Validating sparse tensor invariants",
                "Sparse invariant checks",  # of torch 2.11
                "Detected pickle protocol",
            ):
                warnings.filterwarnings("ignore", known)
            return torch.load(file, map_location=device, weights_only=True, mmap=False)
    except OSError:
        raise
    except Exception as error:  # damage raises many kinds
        # Torch's text advises to trust the file. We take only the part that names what it refuses.
        refused = re.search(r"Unsupported [^.]*?GLOBAL \S+|Unsupported operand \d+", str(error))
        raise unreadable(path, refused[0] if refused else error) from error
