"""Files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import functools
import os
import re
import shutil
import stat
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PathLike = str | os.PathLike[str]
_LONG = 64  # bytes of a name that temporary names no longer contain, for they may not be longer
_NOT_OFFERED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
_CLONE = 0x40049409  # FICLONE of Linux: the copy shares its data until one of the two changes


def listed(paths: PathLike | Iterable[PathLike]) -> list[Path]:
    """Several paths, or one alone."""
    return [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(one) for one in paths]


def make_directory(path: PathLike) -> Path:
    """Create a directory with its parents; any number of processes may do so at once.

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


def check_inside(path: PathLike, directory: PathLike) -> Path:
    """The end of a path's symbolic links, which lies in a directory.

    A directory that is a link itself is as good.

    Raises:
        PermissionError: It lies elsewhere.
    """
    real, own = Path(os.path.realpath(path)), Path(os.path.realpath(directory))
    if own not in real.parents:
        raise PermissionError(
            errno.EPERM,
            f"it leads out of {directory}, to {real}: put a file in its place, or make a link of "
            "the whole directory",
            str(path),
        )
    return real


@contextmanager
def write_whole(
    path: PathLike, size: int = 0, inside: PathLike | None = None
) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name when it is complete and on the disk.

    An error inside the block leaves the previous file as it was, and nothing beside it. A
    symbolic link is followed: its target is replaced, and the link stays.

    Args:
        size: Bytes that are about to be written, for the error when there is no room.
        inside: The directory that no link may lead out of.

    Raises:
        IsADirectoryError: The path is a directory.
        PermissionError: A link leads out of the directory.
        OSError: With the path, the cause, the bytes needed and the bytes free; or the path is a
            device, a pipe or a socket. Nothing has been written then.
    """
    with _replacement(_followed(path, inside), size) as temporary, temporary.open("x+b") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def append_whole(path: PathLike, data: bytes, inside: PathLike | None = None) -> None:
    """Append to a file, which is made if need be: all of it, or nothing where there is no room.

    Raises:
        OSError: With the path; as `write_whole`.
    """
    path = _followed(path, inside)
    _check_replaceable(path)
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
    """Let an error of the disk in a block say which file it is about, where it does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


def link_or_copy(source: PathLike, target: PathLike) -> None:
    """Make `target` the same file as `source`: a hard link, or a copy where links are impossible.

    `target` is replaced in one step: at every moment it is the old file or the new one. Symbolic
    links are followed. A copy is on the disk before it has its name, shares its data where the
    file system can do that, and is warned about once for each directory.

    Raises:
        OSError: With the path, the cause, the bytes needed and the bytes free.
    """
    _link_or_copy(_followed(source), _followed(target))


def replace_link(link: PathLike) -> None:
    """Put the file that a symbolic link stands for in the place of the link.

    `link` is replaced in one step, as `link_or_copy` does it.
    """
    _link_or_copy(_followed(link), Path(link), over_links=True)


def _link_or_copy(source: Path, target: Path, over_links: bool = False) -> None:
    impossible = None
    # Renaming one hard link onto another of the same file does nothing, and leaves both.
    if target.is_symlink() or not (target.exists() and target.samefile(source)):
        with _replacement(target, source.stat().st_size, over_links) as temporary:
            try:
                os.link(source, temporary)
            except OSError as error:  # FAT, some network file systems
                impossible = error.strerror
                _copy(source, temporary)
    else:
        _sync_name(target)
    if impossible is not None:
        _tell_of_copies(target.parent.resolve(), impossible)


def point_to(destination: PathLike, link: PathLike) -> None:
    """Make `link` a symbolic link, in place of the file or link that has that name.

    `link` is replaced in one step.
    """
    with _replacement(Path(link), over_links=True) as temporary:
        temporary.symlink_to(destination)


def temporary_name(path: PathLike) -> Path:
    """A name beside a path that nobody has; `remove_leftovers` knows whose it is."""
    # In the same directory: a rename across file systems is a copy, and a copy can be cut short.
    path = Path(path)
    name = f".{path.name}" if len(os.fsencode(path.name)) <= _LONG else ""
    return path.with_name(f"{name}.{uuid.uuid4().hex}.tmp")


def remove_leftovers(directory: PathLike, own: Callable[[str], object]) -> None:
    """Remove the temporary files of processes that were killed; hold the directory meanwhile.

    Args:
        own: Whether a name is that of a file whose leftovers are to go. Others may be being
            written by somebody who does not hold the directory.
    """
    for path in Path(directory).glob(".*.tmp"):
        written = re.fullmatch(r"\.(.+)\.[0-9a-f]{32}\.tmp", path.name)
        if written and own(written[1]):
            with suppress(OSError):  # it does no harm where it cannot be removed
                path.unlink()


@contextmanager
def locked_directory(path: PathLike, timeout: float = 60) -> Iterator[None]:
    """Hold a directory against other processes that ask for it; the system lets go of the dead.

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


# ---------------------------------------------------------------- what may be replaced


def _followed(path: PathLike, inside: PathLike | None = None) -> Path:
    """The file that a path stands for: itself, or the end of its symbolic links."""
    path = Path(path)
    if inside is not None:
        check_inside(path, inside)
    return Path(os.path.realpath(path)) if path.is_symlink() else path


_KINDS = {
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link that leads in a circle",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def kind_of(mode: int) -> str:
    """What a path is that is no regular file, by its mode."""
    return _KINDS.get(stat.S_IFMT(mode), "special file")


def _check_replaceable(path: Path, over_links: bool = False) -> None:
    """Raise if a path is neither a regular file nor free: nothing else is ever replaced."""
    try:
        kind = stat.S_IFMT(path.lstat().st_mode)
    except FileNotFoundError:
        if not path.parent.exists():
            raise FileNotFoundError(
                errno.ENOENT, f"there is no directory {path.parent} for {path.name}; make it first"
            ) from None
        return
    except OSError:  # told when it is written
        return
    if kind == stat.S_IFREG or (over_links and kind == stat.S_IFLNK):
        return
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(
            errno.EISDIR,
            f"a directory is in the way, move {path} away, or choose the name of a file in it",
        )
    raise OSError(
        errno.EINVAL,
        f"{path} is a {kind_of(kind)}; only a file can be written whole or not "
        "at all: choose the name of one",
    )


@contextmanager
def _replacement(path: Path, size: int = 0, over_links: bool = False) -> Iterator[Path]:
    _check_replaceable(path, over_links)
    temporary = temporary_name(path)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):  # what went wrong first is what is told
            temporary.unlink()
        if isinstance(error, OSError):
            raise _described(error, path, size) from error
        raise
    _sync_name(path)


def _described(error: OSError, path: Path, size: int) -> OSError:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return type(error)(
            error.errno,
            f"{error.strerror}: {path} cannot be written; what was {path} before is as it was; get "
            f"the right to write to the directory {path.parent}, or choose another one",
        )
    try:
        directory = next(part for part in path.parents if part.exists())
        free = f"{shutil.disk_usage(directory).free:,} bytes are free"
        full = error.errno == errno.ENOSPC and hasattr(os, "statvfs") and os.statvfs(directory)
        if full and full.f_files and not full.f_favail:
            free = "the file system has no room for another file: remove some (df -i counts them)"
    except OSError:  # the disk is gone
        free = "an unknown number of bytes are free"
    return type(error)(
        error.errno,
        f"{error.strerror or error}: {path} takes about {size:,} bytes, and {free}; what was "
        f"{path} before is as it was",
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

    A file system that does not offer that for directories, as some network mounts, is believed.
    """
    if os.name != "posix":
        return
    with naming(path), _opened(Path(path)) as descriptor:
        try:
            os.fsync(descriptor)
        except OSError as error:
            offered = error.errno not in _NOT_OFFERED
            if offered or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise


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
