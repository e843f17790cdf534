"""Send the checkpoint of rank 0 to hosts that do not share a directory."""

from __future__ import annotations

import platform
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from batteries import distributed
from batteries._files import PathLike, make_directory, naming, write_whole
from batteries.checkpoint._latest import latest, newest_first
from batteries.checkpoint._read import is_sharded
from batteries.checkpoint._read_outline import CheckpointError
from batteries.checkpoint._seal import read_seal

_PIECE = 64 * 2**20  # bytes that are sent at once, and that each rank has in memory


def share_checkpoint(logdir: PathLike) -> Path | None:
    """Write rank 0's newest good checkpoint to each host that does not have it.

    >>> share_checkpoint("runs/digits/checkpoints") is None
    True

    Use it if the hosts share no directory. Call it on all ranks before `resume`. One rank of each
    host writes the file, and replaces another file of that name.

    Returns:
        The path of the checkpoint; None if rank 0 has none.

    Raises:
        CheckpointError: Rank 0 has a sharded checkpoint there: each host has a part of it.
        NotADirectoryError: `logdir` is a file, or a checkpoint itself.
        OSError: An error of a host's disk. All ranks raise it.
    """
    newest = _newest(logdir)
    if newest is None:
        return None
    places = distributed.all_gather(distributed.together(lambda: _place(newest)))
    source, wanted = places[0]
    apart = [place != source and (content != wanted or not wanted[1]) for place, content in places]
    if any(apart):
        mine = distributed.rank()
        _send(newest, writes=apart[mine] and places.index(places[mine]) == mine)
    return newest


@distributed.rank_zero_only(share=True)
def _newest(logdir: PathLike) -> Path | None:
    for path in newest_first(logdir):
        if is_sharded(path):
            raise CheckpointError(
                f"{path} is sharded: put it on a file system that all hosts share, or make one "
                "file of it with consolidate"
            )
    return latest(logdir)


def _place(path: Path) -> tuple[Any, Any]:
    """What identifies the directory that this rank sees, and its checkpoint."""
    status = make_directory(path.parent).stat()
    return (platform.node(), status.st_dev, status.st_ino), _content(path)


def _content(path: Path) -> Any:
    """What identifies a checkpoint, without reading all of it."""
    if not path.is_file():
        return None
    seal = read_seal(path)
    return path.stat().st_size, seal and seal.digest


def _send(path: Path, writes: bool) -> None:
    """Rank 0 reads the file and sends it. The ranks with `writes` write it."""
    size = distributed.broadcast(path.stat().st_size if distributed.is_main() else 0)
    failure: OSError | None = None

    def check() -> None:
        if failure:
            raise failure

    with ExitStack() as files:
        source = files.enter_context(path.open("rb")) if distributed.is_main() else None
        target: BinaryIO | None = None
        for _ in range(0, size, _PIECE):
            piece = distributed.broadcast(source.read(_PIECE) if source else b"")
            try:
                if writes and not failure:
                    target = target or files.enter_context(write_whole(path, size))
                    with naming(path):
                        target.write(piece)
            except OSError as error:
                failure = error
        distributed.together(check)
        distributed.together(files.close)
