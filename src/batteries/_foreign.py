"""Files that anybody may have written: read within bounds, and checked before they are believed."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from batteries._files import PathLike, check_inside, kind_of

_MOST = 64 * 2**20  # bytes of JSON: 100,000 epochs of ten metrics take 50 MB
_VALUES = 4_000_000  # in them, of which each takes up to 100 bytes of memory
_DEEP = 64  # containers in each other
_NAME = 1000  # letters of a name
_LINE = 16 * 2**20  # bytes of a line
LARGEST = 10.0**300  # of numbers: their differences and sums are floats
LAST_EPOCH = 10**18  # below which a whole number is an epoch


@contextmanager
def open_regular(path: PathLike, inside: PathLike | None = None) -> Iterator[BufferedReader]:
    """Open a file to be read; whatever else has that name is refused, and never waited for.

    Args:
        inside: The directory in which the file has to be, at the end of all symbolic links.

    Raises:
        IsADirectoryError: It is a directory.
        OSError: It is a pipe, a device or a socket; a link leads out of the directory; and what
            the disk says.
    """
    _check_regular(path, Path(path).stat().st_mode)
    if inside is not None:
        check_inside(path, inside)
    # Another may take the name meanwhile: a pipe does not block then.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        _check_regular(path, os.fstat(file.fileno()).st_mode)
        yield file


def check_regular(path: PathLike) -> None:
    """Raise if a path is no file with data: before it is handed to a library that takes its time.

    Raises:
        OSError: It is something else, or a hole: bytes that the disk does not have.
    """
    found = Path(path).stat()
    _check_regular(path, found.st_mode)
    held = getattr(found, "st_blocks", found.st_size) * 512  # a file system may compress
    if found.st_size > max(2**26, 1000 * held):
        told = f"of its {found.st_size:,} bytes the disk has {held:,}: it is a hole"
        raise OSError(errno.EFBIG, told, str(path))


def _check_regular(path: PathLike, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is a {kind_of(mode)}; expected a file", str(path))


def read_regular(path: PathLike, inside: PathLike | None = None, most: int = _MOST) -> bytes:
    """The bytes of a file, if they are no more than that.

    Raises:
        ValueError: They are more.
        OSError: As `open_regular`.
    """
    with open_regular(path, inside) as file:
        data = file.read(most + 1) if (size := os.fstat(file.fileno()).st_size) <= most else b""
        if max(size, len(data)) > most:
            raise ValueError(f"{path} has {size:,} bytes; expected {most:,} at most")
    return data


def read_json(path: PathLike, inside: PathLike | None = None) -> Any:
    """The value in a file of JSON, of bounded size, depth and number of values.

    Raises:
        ValueError: It is not JSON, or beyond a bound.
        OSError: As `open_regular`.
    """
    return parse_json(read_regular(path, inside))


def parse_json(data: bytes) -> Any:
    """The value that is written as JSON.

    Raises:
        ValueError: It is not JSON, or beyond a bound.
    """
    if sum(map(data.count, (b",", b"[", b"{"))) > _VALUES:
        raise ValueError(f"it has more than {_VALUES:,} values")
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError(f"it is nested more than {_DEEP} deep") from None
    level = [value]
    for _ in range(_DEEP):
        level = [
            part
            for each in level
            if type(each) in (dict, list)
            for part in (each.values() if type(each) is dict else each)
        ]
        if not level:
            return value
    raise ValueError(f"it is nested more than {_DEEP} deep")


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    r"""The lines of a file, up to one that is longer than any that is written."""
    while line := file.readline(_LINE):
        yield line
        if len(line) == _LINE:
            return


# ---------------------------------------------------------------- what values may be


class Most(NamedTuple):
    """A text, list or dict of at most so many letters or values."""

    type: type
    number: int
    each: Any = object  # what its values are


def check(value: Any, kind: Any, place: str = "it") -> None:
    """Raise if a value of JSON is not what it should be.

    Args:
        kind: A type, where `float` is any finite number, and a bool is no number; a dict of the
            kinds of some names, none of which has to be there; a list with the kind of all
            items; `Most`; or a tuple of None and a kind.

    Raises:
        ValueError: With the place, what was expected and what was found.
    """
    if type(kind) is tuple and value is None:
        return
    kind = kind[1] if type(kind) is tuple else kind
    most = kind if isinstance(kind, Most) else None
    own = most.type if most else type(kind) if type(kind) in (dict, list) else kind
    if not _is(value, own):
        expected = "a finite number" if own is float else own.__name__
        raise ValueError(f"{place} is {brief(value)}; expected {expected}")
    if most:
        if len(value) > most.number:
            raise ValueError(f"{place} has {len(value):,} items; expected {most.number:,} at most")
        if own is dict and max(map(len, value), default=0) > _NAME:
            raise ValueError(f"{place} has a name of more than {_NAME} letters")
        kind = (
            dict.fromkeys(value, most.each) if own is dict else [most.each] if own is list else own
        )
    if isinstance(kind, dict):
        for name in kind.keys() & value.keys():
            check(
                value[name], kind[name], name if place == "it" else f"{place}.{brief(name)[1:-1]}"
            )
    elif isinstance(kind, list):
        for index, each in enumerate(value):
            check(each, kind[0], f"{place}[{index}]")


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return is_number(value)
    return kind is object or (isinstance(value, kind) and (type(value) is bool) == (kind is bool))


def is_number(value: Any) -> bool:
    """Whether a value is a number that can be computed with."""
    return type(value) in (int, float) and -LARGEST < value < LARGEST


def is_epoch(value: Any) -> bool:
    """Whether a value is an epoch, of which names of files are made."""
    return type(value) is int and -LAST_EPOCH < value < LAST_EPOCH


def brief(value: Any) -> str:
    """What a message says of a value, however large that is."""
    if isinstance(value, dict | list) and len(value) > 3:
        return f"a {type(value).__name__} of {len(value):,}"
    text = repr(value[:100] if isinstance(value, str) else value)
    return text if len(text) <= 40 else f"{text[:36]}..."


def printable(text: str) -> str:
    r"""A text that a terminal shows as it is: no command for it, and no line of its own."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
