"""Write a checkpoint: whole or absent, and sealed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from batteries._files import PathLike, write_whole
from batteries._preemption import timed_save
from batteries.checkpoint._contents import plain_or_refused, rebuilt
from batteries.checkpoint._seal import Note
from batteries.checkpoint._write_archive import is_plain, write_archive


def save_checkpoint(
    checkpoint: Mapping[str, Any], path: PathLike, note: Note | None = None
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

    plain = rebuilt(checkpoint, leaf)
    with timed_save(), write_whole(path, _bytes_in(leaves)) as file:
        write_archive(plain, file, note or {}, leaves)


def _bytes_in(leaves: Iterable[Any]) -> int:
    dense = [leaf for leaf in leaves if isinstance(leaf, Tensor) and is_plain(leaf)]
    storages = (tensor.untyped_storage() for tensor in dense)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
