"""Write a sharded checkpoint: a directory to which each rank writes its part."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from batteries import distributed
from batteries._files import PathLike, point_to, sync, temporary_name
from batteries._rundir import record as run_record
from batteries.checkpoint._contents import (
    Checkpoint,
    plain_or_refused,
    rebuilt,
    state_key,
    why_unreadable,
)
from batteries.checkpoint._read_outline import CheckpointError
from batteries.checkpoint._read_shards import digest_of, engine
from batteries.checkpoint._seal import INDEX, Note
from batteries.checkpoint._write import save_checkpoint
from batteries.distributed._messages import is_sharded
from batteries.distributed._waiting import wait_until

# A directory holds the files of torch.distributed.checkpoint, and index.pth, which is written last.
# index.pth has the checkpoint with an empty tensor for each tensor, the shapes of the tensors, and
# the digests of the other files.
_UUID = "[0-9a-f]{32}"
_CLAIM = rf"\..+\.dcp\.{_UUID}\.tmp"


def new_folder(shards: Path) -> Path:
    return shards / uuid.uuid4().hex


def write_shards(checkpoint: Mapping[str, Any], folder: Path) -> Checkpoint:
    """Write the tensors of a checkpoint, each rank its part, and return the index.

    All ranks call it with the same checkpoint. When it returns, all tensors are on the disk. If a
    rank raises, all ranks do.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemWriter  # takes long to import
    from torch.distributed.checkpoint.state_dict_saver import save

    tensors: dict[str, Tensor] = {}

    def taken(value: Any, place: str) -> Any:
        if not isinstance(value, Tensor):
            return plain_or_refused(value, place)
        why = why_unreadable(value)
        if why or value.layout != torch.strided:
            why = why or "it is sparse; store tensor.to_dense()"
            raise TypeError(f"a sharded checkpoint cannot hold {place}: {why}")
        tensors[place] = value.detach()
        return torch.empty(0, dtype=value.dtype, device="cpu")

    def checked() -> Any:
        if not (distributed.is_main() or wait_until(folder.is_dir, run_record.SEEN)):
            raise CheckpointError(
                f"rank {distributed.rank()} on {platform.node()} does not see {folder}, which rank "
                "0 has made: save a sharded checkpoint to a directory that all hosts share"
            )
        return rebuilt(checkpoint, taken)

    plain = distributed.together(checked)
    _check_alike(tensors)
    # torch.distributed.checkpoint takes a tensor that is whole on all ranks from any rank. The
    # ranks may differ, for example in batch norm's statistics. A checkpoint has those of rank 0.
    own_parts = {
        place: tensor
        for place, tensor in tensors.items()
        if distributed.is_main() or is_sharded(tensor)
    }
    # torch would sync .metadata before Python has written it, so all files are synced below.
    writer = FileSystemWriter(folder, sync_files=False)
    with engine(f"{folder} cannot be written"):
        save(own_parts, storage_writer=writer, no_dist=not dist.is_initialized())
    own = list(folder.glob(f"__{distributed.rank()}_*"))
    own += [folder / ".metadata"] if distributed.is_main() else []
    digests = distributed.together(lambda: {path.name: _synced_digest(path) for path in own})
    return {
        "checkpoint": plain,
        "shapes": {place: list(tensor.shape) for place, tensor in tensors.items()},
        "files": {
            name: digest
            for part in distributed.all_gather(digests)
            for name, digest in part.items()
        },
    }


def _check_alike(tensors: Mapping[str, Tensor]) -> None:
    """Raise on all ranks if one has parts or weights that rank 0 does not have.

    They would be lost.
    """
    own = [
        place
        for place, tensor in tensors.items()
        if is_sharded(tensor) or place.startswith(state_key("model"))
    ]
    digest = hashlib.blake2b(repr(own).encode()).digest()
    if len(set(distributed.all_gather(digest))) == 1:
        return
    everybody = distributed.all_gather(own)
    for rank, places in enumerate(everybody):
        lost = set(places).difference(everybody[0])
        if lost:
            raise CheckpointError(
                f"rank {rank} has {min(lost)}, which rank 0 does not have: a sharded checkpoint "
                "would lose it, because all ranks must have the same objects; save the stages of "
                "a pipeline with torch.distributed.checkpoint"
            )


def commit_shards(index: Checkpoint, folder: Path, name: Path, note: Note) -> None:
    """Complete a directory with its index, and make the name a link to it. This is the commit."""
    save_checkpoint(index, folder / INDEX, note=note)
    sync(folder.parent)
    sync(folder.parent.parent)
    name_shards(name, os.path.relpath(folder, name.parent))


# Several log directories may keep their shards in one place. A directory is removed only if this
# log directory has a temporary link to it, a claim. A claim is made before the directory is
# written, and before a name that links to it is changed.


def claim_shards(folder: PathLike, name: Path) -> None:
    temporary_name(name).symlink_to(folder)


def name_shards(name: Path, folder: PathLike) -> None:
    """Make the name a link to a directory. The directory that it linked to before is claimed."""
    if name.is_symlink() and name.readlink() != Path(folder):
        claim_shards(name.readlink(), name)
    point_to(folder, name)


def remove_unnamed(shards: Path) -> None:
    """Remove claimed directories that have no name. The caller holds the log directory."""
    links = [path for path in shards.parent.glob("*") if path.is_symlink()]
    claims = [path for path in links if re.fullmatch(_CLAIM, path.name)]
    named = {path.resolve() for path in links if path not in claims}
    for link in claims:
        folder = link.resolve()
        ours = folder.parent == shards.resolve() and re.fullmatch(_UUID, folder.name)
        if ours and folder not in named and folder.is_dir():
            shutil.rmtree(folder)
        link.unlink()


def _synced_digest(path: Path) -> str:
    sync(path)
    return digest_of(path)
