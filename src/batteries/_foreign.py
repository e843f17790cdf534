"""Untrusted files: they are read within limits and checked before use."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from batteries._files import PathLike, check_inside, kind_of

_MOST = 64 * 2**20  # bytes of JSON: 100,000 epochs of ten metrics take 50 MB
_VALUES = 4_000_000  # values in JSON; each takes up to 100 bytes of memory
_DEEP = 64  # levels of nested containers
LONGEST_NAME = 1000  # letters
_LINE = 16 * 2**20  # bytes of a line
LARGEST = 10.0**300  # numbers are smaller, so their differences and sums are finite
LAST_EPOCH = 10**18  # epochs are smaller


@contextmanager
def open_regular(path: PathLike, inside: PathLike | None = None) -> Iterator[BufferedReader]:
    """Open a regular file for reading. For anything else, raise an OSError, and never wait.

    Args:
        inside: The directory that must contain the file, at the end of all symbolic links.
    """
    _check_regular(path, Path(path).stat().st_mode)
    if inside is not None:
        check_inside(path, inside)
    # Another file may get the name before it is opened. O_NONBLOCK avoids waiting for a pipe.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        _check_regular(path, os.fstat(file.fileno()).st_mode)
        yield file


def check_regular(path: PathLike) -> None:
    """Raise if a path is no regular file, or if most of the file is a hole.

    A library would take a long time to read such a hole.
    """
    found = Path(path).stat()
    _check_regular(path, found.st_mode)
    held = getattr(found, "st_blocks", found.st_size) * 512  # a file system may compress
    if found.st_size > max(2**26, 1000 * held):
        told = f"it claims {found.st_size:,} bytes, but the disk has {held:,}: it is a sparse file"
        raise OSError(errno.EFBIG, told, str(path))


def _check_regular(path: PathLike, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is a {kind_of(mode)}; expected a file", str(path))


def read_regular(path: PathLike, inside: PathLike | None = None, most: int = _MOST) -> bytes:
    """The bytes of a file, or a ValueError if it has more than `most` bytes."""
    with open_regular(path, inside) as file:
        data = file.read(most + 1) if (size := os.fstat(file.fileno()).st_size) <= most else b""
        if max(size, len(data)) > most:
            raise ValueError(f"{path} has {size:,} bytes; expected {most:,} at most")
    return data


def read_json(path: PathLike, inside: PathLike | None = None) -> Any:
    """The value in a JSON file, within the limits of `parse_json`."""
    return parse_json(read_regular(path, inside))


def parse_json(data: bytes) -> Any:
    """The value of JSON, or a ValueError if it is not JSON, has too many values or is too deep."""
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
    """The lines of a file, up to the first that is too long: of that one, only the beginning."""
    while line := file.readline(_LINE):
        yield line
        if len(line) == _LINE:
            return


# ---------------------------------------------------------------- the schema of values


class Most(NamedTuple):
    """A text, list or dict with at most `number` letters or values."""

    type: type
    number: int
    each: Any = object  # the kind of its values


def check(value: Any, kind: Any, place: str = "it") -> None:
    """Raise a ValueError, with its place, if a value of JSON is not of a kind.

    Args:
        kind: One of these:

            - a type: `float` means any finite number, and a bool is not a number;
            - a dict with the kind of the value of each name: names may be missing;
            - a list with one kind, that of all items;
            - `Most`;
            - a tuple (None, kind), which also allows None.
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
            counted = "characters" if own is str else "items"
            raise ValueError(
                f"{place} has {len(value):,} {counted}; expected {most.number:,} at most"
            )
        if own is dict and max(map(len, value), default=0) > LONGEST_NAME:
            raise ValueError(f"{place} has a name of more than {LONGEST_NAME} characters")
        kind = (
            dict.fromkeys(value, most.each) if own is dict else [most.each] if own is list else own
        )
    if isinstance(kind, dict):
        for name in kind.keys() & value.keys():
            inside = name if place == "it" else f"{place}.{brief(name)[1:-1]}"
            check(value[name], kind[name], inside)
    elif isinstance(kind, list):
        for index, each in enumerate(value):
            check(each, kind[0], f"{place}[{index}]")


def values_in(state: Any, maker: str, *names: str) -> list[Any]:
    """The values of a state by their names; an error says which ones are missing.

    Args:
        maker: The function that returns such states.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"the state is {brief(state)}; expected what {maker} returns")
    missing = sorted({*names} - {*state})
    if missing:
        raise KeyError(
            f"the state has no {', '.join(map(repr, missing))}; expected what {maker} returns"
        )
    return [state[name] for name in names]


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return is_number(value)
    return kind is object or (isinstance(value, kind) and (type(value) is bool) == (kind is bool))


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and -LARGEST < value < LARGEST


def is_epoch(value: Any) -> bool:
    """Whether a value can be an epoch, which becomes part of file names."""
    return type(value) is int and -LAST_EPOCH < value < LAST_EPOCH


def brief(value: Any) -> str:
    """A short text for a value in a message."""
    if isinstance(value, dict | list) and len(value) > 3:
        return f"a {type(value).__name__} of {len(value):,}"
    text = repr(value[:100] if isinstance(value, str) else value)
    return text if len(text) <= 40 else f"{text[:36]}..."


def printable(text: str) -> str:
    """A text without line ends and without characters that a terminal would obey."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
