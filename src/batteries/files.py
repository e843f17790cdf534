"""Files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PathLike = str | os.PathLike[str]
_TEMPORARY = ".tmp"


def make_directory(path: PathLike) -> Path:
    """Create a directory with its parents; any number of processes may do so at once.

    >>> make_directory("runs/digits")
    PosixPath('runs/digits')

    Raises:
        NotADirectoryError: the path, or one of its parents, is a file.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        parts = (part for part in (path, *path.parents) if part.exists() or part.is_symlink())
        raise NotADirectoryError(
            f"cannot create the directory {path}: {next(parts)} is a file; "
            "choose another log directory or move the file away"
        ) from None
    return path


@contextmanager
def write_whole(path: PathLike) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name when it is complete and on the disk.

    >>> with write_whole("notes.txt") as file:
    ...     _ = file.write(b"all of it")

    An error inside the block leaves the previous file as it was, and nothing beside it.
    """
    with _replacement(Path(path)) as temporary, temporary.open("x+b") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    sync(Path(path).parent)


def link_or_copy(source: PathLike, target: PathLike) -> None:
    """Make `target` the same file as `source`: a hard link, or a copy where links are impossible.

    >>> Path("exp_3.pth").touch()
    >>> link_or_copy("exp_3.pth", "best.pth")

    `target` is replaced in one step: at every moment it is the old file or the new one. Of a
    symbolic link it becomes another.
    """
    if Path(source).is_symlink():
        point_to(Path(source).readlink(), target)
        return
    with _replacement(Path(target)) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # FAT, some network file systems
            shutil.copyfile(source, temporary)
    sync(Path(target).parent)


def point_to(destination: PathLike, link: PathLike) -> None:
    """Make `link` a symbolic link, in place of whatever file or link has that name.

    >>> make_directory("shards/1")
    PosixPath('shards/1')
    >>> point_to("shards/1", "last")

    `link` is replaced in one step.
    """
    with _replacement(Path(link)) as temporary:
        temporary.symlink_to(destination)
    sync(Path(link).parent)


def remove_leftovers(directory: PathLike) -> None:
    """Remove the temporary files of processes that were killed; hold the directory meanwhile.

    >>> remove_leftovers(".")
    """
    for path in Path(directory).glob(f".*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


@contextmanager
def locked_directory(path: PathLike, timeout: float = 60) -> Iterator[None]:
    """Hold a directory against other processes that ask for it; the system lets go of the dead.

    >>> with locked_directory("."):
    ...     pass

    The lock is on the directory itself: there is no lock file. On systems and file systems
    without such locks nothing is held.

    Args:
        timeout: Seconds to wait for another process.

    Raises:
        TimeoutError: Another process holds it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"{path} has been held by another process for {timeout} s: is it stopped?"
                    ) from None
                time.sleep(0.01)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _replacement(path: Path) -> Iterator[Path]:
    # In the same directory: a rename across file systems is a copy, and a copy can be cut short.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_TEMPORARY}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        # Also after success: renaming one hard link onto another of the same file does nothing.
        temporary.unlink(missing_ok=True)


def sync(path: PathLike) -> None:
    """Put a file, or the names in a directory, on the disk.

    >>> sync(".")
    """
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
