"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import re
import shutil
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from batteries._warnings import warn

PathLike = str | os.PathLike[str]
_LONG = 64  # bytes; longer names are not put into temporary names, which would become too long
_held_here = threading.local()
_NOT_OFFERED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


class Place:
    """An attribute with a path that stays the same place if the working directory changes.

    While the working directory is the same, the path is as it was given. Other threads than the
    main one get an absolute path, because the program may change the directory while they use it.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"{name} and the working directory"

    def __set__(self, instance: Any, path: PathLike) -> None:
        path = Path(path)
        vars(instance)[self._name] = path, None if path.is_absolute() else Path.cwd()

    def __get__(self, instance: Any, owner: type) -> Path:
        if instance is None:
            raise AttributeError  # so that a dataclass sees no default
        path: Path
        path, above = vars(instance)[self._name]
        if above is None:
            return path
        with suppress(OSError):  # the working directory was removed
            if threading.current_thread() is threading.main_thread() and above == Path.cwd():
                return path
        return Path(above, path)


def listed(paths: PathLike | Iterable[PathLike]) -> list[Path]:
    """A list of paths, also for a single one."""
    return [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(one) for one in paths]


def walk(root: PathLike, deep: int = 1000) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk`, at most `deep` levels below the root."""
    top = os.fspath(root)
    for folder, folders, files in os.walk(top):
        if folder.removeprefix(top).count(os.sep) >= deep:
            folders.clear()
        yield folder, folders, files


def refuse_source(out: PathLike, sources: Iterable[PathLike]) -> None:
    """Raise if a result would replace a file that it is made of."""
    for source in sources:
        with suppress(FileNotFoundError):
            if Path(out).samefile(source):
                raise ValueError(
                    f"the result would replace {source}, which it is made of: choose another path"
                )


def make_directory(path: PathLike) -> Path:
    """Create a directory with its parents. Several processes may do so at once."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        parts = (part for part in (path, *path.parents) if part.exists() or part.is_symlink())
        wrong = next(parts)
        lost = "" if wrong.exists() else f"link to {wrong.readlink()}, which does not exist"
        raise NotADirectoryError(
            f"cannot create the directory {path}: {wrong} is a {lost or 'file'}; "
            f"choose another log directory or move the {'link' if lost else 'file'} away"
        ) from None
    return path


def check_inside(path: PathLike, directory: PathLike) -> Path:
    """Follow a path's symbolic links to the end. Raise if the end is not inside the directory.

    The directory itself may be a link.
    """
    real, own = Path(os.path.realpath(path)), Path(os.path.realpath(directory))
    if own not in real.parents:
        raise PermissionError(
            errno.EPERM,
            f"it leads out of {directory}, to {real}: put a file in its place, or make the "
            "whole directory a link",
            str(path),
        )
    return real


@contextmanager
def write_whole(
    path: PathLike, size: int = 0, inside: PathLike | None = None
) -> Iterator[BinaryIO]:
    """Open a file for writing. It gets its name when it is complete and on the disk.

    After an error in the block, the previous file is unchanged, and no other file is left. If the
    path is a symbolic link, its target is replaced, and the link stays.

    Args:
        size: The number of bytes to write, for the error if there is no room; 0 if unknown.
        inside: The directory that must contain the file, at the end of all links.

    Raises:
        OSError: The message has the path and the cause. If the disk is full, it also has the bytes
            needed, if known, and the bytes free. Or the path is a directory, a device, a pipe or a
            socket.
    """
    with _replacement(_followed(path, inside), size) as temporary, temporary.open("x+b") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def append_whole(path: PathLike, data: bytes, inside: PathLike | None = None) -> None:
    """Append to a file, or create it; if there is no room, append nothing and raise."""
    path = _followed(path, inside)
    _check_replaceable(path)
    with naming(path):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        end = os.fstat(file).st_size
        try:
            written = os.write(file, data)
            if written < len(data):  # the disk is full: the next write raises
                os.write(file, data[written:])
        except OSError:
            os.ftruncate(file, end)
            raise
        finally:
            os.close(file)


@contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """Add the path to an OSError of the block that names no file."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


def link_or_copy(source: PathLike, target: PathLike, *, over_links: bool = False) -> None:
    """Make `target` a hard link to `source`, or a copy if links are impossible.

    `target` is replaced in one step, so at every moment it is the old file or the new one. Symbolic
    links are followed. A copy is on the disk before it gets its name. A warning tells of copies
    once for each directory.

    Args:
        over_links: If `target` is a symbolic link, replace the link itself.
    """
    source, target = _followed(source), Path(target) if over_links else _followed(target)
    impossible = None
    # Renaming a hard link to another name of the same file does nothing, and leaves both names.
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
    """Replace `link`, in one step, by a symbolic link to `destination`."""
    with _replacement(Path(link), over_links=True) as temporary:
        temporary.symlink_to(destination)


def temporary_name(path: PathLike) -> Path:
    """A new name in the directory of a path; `remove_leftovers` recognises it."""
    # In the same directory, because a rename across file systems would be a copy.
    path = Path(path)
    name = f".{path.name}" if len(os.fsencode(path.name)) <= _LONG else ""
    return path.with_name(f"{name}.{uuid.uuid4().hex}.tmp")


def remove_leftovers(directory: PathLike, own: Callable[[str], object]) -> None:
    """Remove the temporary files of killed processes. The caller must hold the directory.

    Args:
        own: Whether the leftovers of a file name may be removed. Processes that do not hold the
            directory may be writing other files.
    """
    for path in Path(directory).glob(".*.tmp"):
        written = re.fullmatch(r"\.(.+)\.[0-9a-f]{32}\.tmp", path.name)
        if written and own(written[1]):
            with suppress(OSError):  # a leftover does no harm
                path.unlink()


@contextmanager
def locked_directory(path: PathLike, timeout: float = 60) -> Iterator[None]:
    """Lock a directory. The system releases the lock of a process that ends.

    The lock is on the directory itself, without a lock file. On file systems without such locks,
    nothing is locked.

    Args:
        timeout: Seconds to wait for another process.

    Raises:
        TimeoutError: Another process keeps the lock.
        RuntimeError: This thread has the lock already: a signal handler has interrupted a save. The
            lock would never be free.
    """
    with _opened(Path(path)) as descriptor:
        held = vars(_held_here).setdefault("directories", set())
        place = os.fstat(descriptor)[1:3]  # the inode and the device
        if place in held:
            raise RuntimeError(
                f"a save into {path} is under way in this thread, and a signal handler in the "
                "middle of it saves there, too: let the handler only set a flag, and save after "
                "the step, as with PreemptionGuard"
            )
        held.add(place)
        try:
            _lock(descriptor, path, timeout)
            yield
        finally:
            held.discard(place)
            with suppress(OSError):  # closing is not enough: a forked process may have a copy
                fcntl.flock(descriptor, fcntl.LOCK_UN)


def _lock(descriptor: int, path: PathLike, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{path} has been locked by another process for {timeout} s: end that process "
                    "if it hangs"
                ) from None
            time.sleep(0.01)
        except OSError:  # a file system without locks
            return None


# ---------------------------------------------------------------- what may be replaced


def _followed(path: PathLike, inside: PathLike | None = None) -> Path:
    """The path, or the end of its symbolic links."""
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
    """The kind of a path that is not a regular file, by its mode."""
    return _KINDS.get(stat.S_IFMT(mode), "special file")


def _check_replaceable(path: Path, over_links: bool = False) -> None:
    """Raise if a path exists and is not a regular file: only regular files are replaced."""
    try:
        kind = stat.S_IFMT(path.lstat().st_mode)
    except FileNotFoundError:
        if not path.parent.exists():
            raise FileNotFoundError(
                errno.ENOENT, f"there is no directory {path.parent} for {path.name}; make it first"
            ) from None
        return
    except OSError:  # writing will raise it
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
        f"{path} is a {kind_of(kind)}; expected a file or a new name",
    )


@contextmanager
def _replacement(path: Path, size: int = 0, over_links: bool = False) -> Iterator[Path]:
    _check_replaceable(path, over_links)
    temporary = temporary_name(path)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):  # the first error is raised
            temporary.unlink()
        if isinstance(error, OSError):
            raise _described(error, path, size) from error
        raise
    _sync_name(path)


def _described(error: OSError, path: Path, size: int) -> OSError:
    there = os.path.lexists(path)
    kept = f"the previous file {path} is as it was" if there else "no file was written"
    remedy = ""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = f"get the right to write to the directory {path.parent}, or choose another one"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        remedy = "choose another directory"
    if remedy:
        told = f"{error.strerror}: {path} cannot be written; {kept}; {remedy}"
        return type(error)(error.errno, told)
    try:
        directory = next(part for part in path.parents if part.exists())
        free = f"{shutil.disk_usage(directory).free:,} bytes are free"
        full = error.errno == errno.ENOSPC and os.statvfs(directory)
        if full and full.f_files and not full.f_favail:
            free = "the file system has no room for another file: remove some (df -i counts them)"
    except OSError:  # the disk is gone
        free = "an unknown number of bytes are free"
    needed = f"takes about {size:,} bytes" if size else "cannot be written"
    told = f"{error.strerror or error}: {path} {needed}, and {free}; {kept}"
    return type(error)(error.errno, told)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as file, target.open("xb") as copy:
        shutil.copyfileobj(file, copy, 2**20)
        copy.flush()
        os.fsync(copy.fileno())


@functools.cache  # once for each directory
def _tell_of_copies(directory: Path, reason: str) -> None:
    warn(
        f"there are no hard links in {directory} ({reason}): files are copied, which is as safe "
        "but takes more time and space; use another file system, or keep fewer checkpoints",
    )


def sync(path: PathLike) -> None:
    """Write a file, or the names in a directory, to the disk.

    Some file systems, such as network mounts, cannot sync directories. This is no error.
    """
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
            f"{error.strerror}: {path} is in place, but a power cut may undo that; check the disk",
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        with suppress(OSError):  # nothing was written through it
            os.close(descriptor)
