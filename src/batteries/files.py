"""Files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PathLike = str | os.PathLike[str]
_TEMPORARY = ".tmp"
_CLONE = 0x40049409  # FICLONE of Linux: the copy shares its data until one of the two changes


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
def write_whole(path: PathLike, size: int = 0) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name when it is complete and on the disk.

    >>> with write_whole("notes.txt") as file:
    ...     _ = file.write(b"all of it")

    An error inside the block leaves the previous file as it was, and nothing beside it.

    Args:
        size: Bytes that are about to be written, for the error when there is no room.

    Raises:
        OSError: With the path, the cause, the bytes needed and the bytes free.
    """
    path = Path(path)
    with _replacement(path, size) as temporary, temporary.open("x+b") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    _sync_name(path)


def append_whole(path: PathLike, data: bytes) -> None:
    """Append to a file, which is made if need be: all of it, or nothing where there is no room.

    >>> append_whole("notes.txt", b"all of it")

    Raises:
        OSError: With the path.
    """
    with naming(path):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        end = os.fstat(file).st_size
        try:
            written = os.write(file, data)
            if written < len(data):  # the disk is full: the rest says so
                os.write(file, data[written:])
        except OSError:
            os.ftruncate(file, end)
            raise
        finally:
            os.close(file)


@contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """Let an error of the disk in a block say which file it is about, where it does not.

    >>> with naming("metrics.json"):
    ...     pass
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


def link_or_copy(source: PathLike, target: PathLike) -> None:
    """Make `target` the same file as `source`: a hard link, or a copy where links are impossible.

    >>> Path("exp_3.pth").touch()
    >>> link_or_copy("exp_3.pth", "best.pth")

    `target` is replaced in one step: at every moment it is the old file or the new one. Of a
    symbolic link it becomes another. A copy is on the disk before it has its name, shares its
    data where the file system can do that, and is warned about once for each directory.

    Raises:
        OSError: With the path, the cause, the bytes needed and the bytes free.
    """
    source, target = Path(source), Path(target)
    if source.is_symlink():
        point_to(source.readlink(), target)
        return
    impossible = None
    # Renaming one hard link onto another of the same file does nothing, and leaves both.
    if not (target.exists() and target.samefile(source)):
        with _replacement(target, source.stat().st_size) as temporary:
            try:
                os.link(source, temporary)
            except OSError as error:  # FAT, some network file systems
                impossible = error.strerror
                _copy(source, temporary)
    _sync_name(target)
    if impossible is not None:
        _tell_of_copies(target.parent.resolve(), impossible)


def point_to(destination: PathLike, link: PathLike) -> None:
    """Make `link` a symbolic link, in place of whatever file or link has that name.

    >>> make_directory("shards/1")
    PosixPath('shards/1')
    >>> point_to("shards/1", "last")

    `link` is replaced in one step.
    """
    with _replacement(Path(link)) as temporary:
        temporary.symlink_to(destination)
    _sync_name(Path(link))


def remove_leftovers(directory: PathLike) -> None:
    """Remove the temporary files of processes that were killed; hold the directory meanwhile.

    >>> remove_leftovers(".")
    """
    for path in Path(directory).glob(f".*{_TEMPORARY}"):
        with suppress(OSError):  # it does no harm where it cannot be removed
            path.unlink()


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
    with _opened(Path(path)) as descriptor:
        _lock(descriptor, path, timeout)
        yield


def _lock(descriptor: int, path: PathLike, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{path} has been held by another process for {timeout} s: is it stopped?"
                ) from None
            time.sleep(0.01)
        except OSError:  # a file system without locks
            return None


@contextmanager
def _replacement(path: Path, size: int = 0) -> Iterator[Path]:
    # In the same directory: a rename across file systems is a copy, and a copy can be cut short.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_TEMPORARY}")
    try:
        if path.is_dir() and not path.is_symlink():
            raise IsADirectoryError(errno.EISDIR, f"a directory is in the way, move {path} away")
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):  # what went wrong first is what is told
            temporary.unlink()
        if isinstance(error, OSError):
            raise _described(error, path, size) from error
        raise


def _described(error: OSError, path: Path, size: int) -> OSError:
    try:
        directory = next(part for part in path.parents if part.exists())
        free = f"{shutil.disk_usage(directory).free:,}"
    except OSError:  # the disk is gone
        free = "an unknown number of"
    return type(error)(
        error.errno,
        f"{error.strerror or error}: {path} takes about {size:,} bytes, and {free} bytes are "
        "free; what was there before is as it was",
    )


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as file, target.open("xb") as copy:
        if not _cloned(file, copy):
            shutil.copyfileobj(file, copy, 2**20)
        copy.flush()
        os.fsync(copy.fileno())


def _cloned(file: BinaryIO, copy: BinaryIO) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.ioctl(copy.fileno(), _CLONE, file.fileno())
    except OSError:  # most file systems
        return False
    return True


@functools.cache  # once for each directory
def _tell_of_copies(directory: Path, reason: str) -> None:
    warnings.warn(
        f"there are no hard links in {directory} ({reason}): copies stand in for them, as safe "
        "but slower and larger; another file system, or fewer checkpoints to keep, helps",
        stacklevel=3,
    )


def sync(path: PathLike) -> None:
    """Put a file, or the names in a directory, on the disk.

    >>> sync(".")
    """
    if os.name == "posix":
        with naming(path), _opened(Path(path)) as descriptor:
            os.fsync(descriptor)


def _sync_name(path: Path) -> None:
    try:
        sync(path.parent)
    except OSError as error:
        raise type(error)(
            error.errno,
            f"{error.strerror}: {path} is in place, but a power cut may take it back; look after "
            "the disk",
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        with suppress(OSError):  # nothing was written through it
            os.close(descriptor)
