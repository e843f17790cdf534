"""The checkpoints of a directory, in the order in which they are tried."""

from __future__ import annotations

import errno
from pathlib import Path

from batteries._files import PathLike
from batteries._rundir.names import epoch_of
from batteries._warnings import warn
from batteries.checkpoint._read import is_sharded, read_checkpoint
from batteries.checkpoint._read_outline import CheckpointError


def latest(logdir: PathLike) -> Path | None:
    """The newest undamaged checkpoint of a directory; None if there is none.

    >>> latest("runs/nothing") is None
    True

    It tries the last one, then the epochs, newest first, then the best. It warns of each damaged
    one. If some are sharded and there is a process group, call it on all ranks.

    Raises:
        NotADirectoryError: `logdir` is a file, or a checkpoint itself.
    """
    paths = newest_first(logdir)
    for path in paths:
        try:
            read_checkpoint(path, "meta")
        except CheckpointError as error:
            told = "there is no older one" if path == paths[-1] else "an older one is taken"
            warn(f"{error}; {told}")
        else:
            return path
    return None


def newest_first(logdir: PathLike) -> list[Path]:
    """The checkpoints of a directory: the last, then the epochs from the newest, then the best."""
    folder = Path(logdir)
    if folder.is_file() or (folder.suffix == ".dcp" and is_sharded(folder)):
        told = (
            "it is not a log directory, but a file or one checkpoint: read it with "
            "load_checkpoint, or pass its directory"
        )
        raise NotADirectoryError(errno.ENOTDIR, told, str(folder))
    epochs = {path: epoch_of(path.name) for path in folder.glob("*.*")}
    numbered = [(epoch, path) for path, epoch in epochs.items() if epoch is not None]
    newest = [path for _, path in sorted(numbered, key=lambda pair: -pair[0])]
    paths = [*folder.glob("last.*"), *newest, *folder.glob("best.*")]
    return [path for path in paths if path.suffix in (".pth", ".dcp")]
