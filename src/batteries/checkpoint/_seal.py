"""The seal at the end of a checkpoint: a note, and the digest of all bytes before it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import struct
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from batteries._files import PathLike, naming
from batteries._foreign import brief, check, open_regular, parse_json

Note = dict[str, Any]  # plain values, stored as JSON
INDEX = "index.pth"  # the file of a directory of shards that has the seal

# A zip file may end in a comment, which torch.load ignores. Ours is
#     batteries little {"epoch":3} digest:0123...
# with the byte order, the note, and the digest of all bytes before it. It is recognized by its
# beginning, by its end, or by a wrong length. So a file with one flipped bit, or one that was cut
# short, is still known to have had a seal.
_MARK, _DIGEST_MARK = b"batteries ", b" digest:"
_OWN_MARK = _MARK + sys.byteorder.encode() + b" "
DIGEST_LENGTH = 32  # hexadecimal digits
_SEAL_LENGTH = len(_DIGEST_MARK) + DIGEST_LENGTH
_END_OF_ZIP, _END_LENGTH = b"PK\5\6", 22  # the record whose last field is the comment's length
_LONGEST_COMMENT = 65_535
LONGEST_SEAL = _END_LENGTH + _LONGEST_COMMENT


class Seal(NamedTuple):
    note: Note
    digest: bytes
    own_byte_order: bool


def check_note(note: Note) -> None:
    """Raise if a note cannot be stored, or would not be read."""
    if not isinstance(note, dict):
        raise TypeError(f"the note of a checkpoint is {brief(note)}; expected a dictionary")
    try:
        parse_json(json.dumps(note).encode())
    except (TypeError, ValueError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else error
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"the note of a checkpoint cannot be stored: {why}") from None


def comment_of(note: Note) -> bytes:
    """The end of a zip file: the length of the seal, and the seal without the digest."""
    comment = _OWN_MARK + json.dumps(note, separators=(",", ":")).encode() + _DIGEST_MARK
    length = len(comment) + DIGEST_LENGTH
    if length > _LONGEST_COMMENT:
        raise ValueError(
            f"the note of a checkpoint takes {length} bytes, more than 65,535: store less in it; "
            "a CheckpointManager notes the scores of the epoch, so pass fewer of them"
        )
    return struct.pack("<H", length) + comment


def find_seal(tail: bytes) -> Seal | None:
    """The seal in the last bytes of a file, if there is one."""
    end = tail.rfind(_END_OF_ZIP)
    comment = tail[end + _END_LENGTH :]
    text, mark = comment[:-_SEAL_LENGTH], tail[-_SEAL_LENGTH:-DIGEST_LENGTH]
    cut = end >= 0 and tail[end + _END_LENGTH - 2 :] != struct.pack("<H", len(comment)) + comment
    if not (cut or comment.startswith(_MARK) or mark == _DIGEST_MARK):
        return None
    try:
        note = parse_json(text[text.find(b"{") :])
        check(note, dict)
    except ValueError:
        note = {}  # the file is damaged, and its digest will show it
    return Seal(note, tail[-DIGEST_LENGTH:], comment.startswith(_OWN_MARK))


def read_note(path: PathLike) -> dict[str, Any] | None:
    """The note in a file of `save_checkpoint`: {} without one, None for any other file.

    >>> save_checkpoint({"model_state_dict": {}}, "last.pth", note={"epoch": 1})
    >>> read_note("last.pth")
    {'epoch': 1}

    For a sharded checkpoint, it is the note of the directory. The file is not verified. A damaged
    note is {}.

    Raises:
        FileNotFoundError: No such file.
    """
    seal = read_seal(path)
    return seal.note if seal else None


def read_seal(path: PathLike) -> Seal | None:
    path = Path(path)
    if path.is_dir():
        path = path / INDEX
        if not path.exists():
            return None
    if path.exists() and not path.is_file():
        return None
    with naming(path), open_regular(path) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - LONGEST_SEAL))
        return find_seal(file.read())


class Digest:
    """A digest that is as fast as memory. It detects damage, but not forgery.

    Each block of 1 MiB is a matrix of 64-bit words. Its rows and its columns are added up, modulo
    2**64, and the sums are hashed. Changing one word changes two sums. Swapping two words changes
    sums too.
    """

    block = 2**20
    shape = (256, 512)

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=DIGEST_LENGTH // 2)

    def update(self, data: Any) -> None:
        """Add bytes: a multiple of `block` in each call except the last."""
        view = memoryview(data).cast("B")
        whole = len(view) // self.block * self.block
        words = np.frombuffer(view[:whole], np.uint64).reshape(-1, *self.shape)
        # One call for all blocks: between calls, threads wait for each other.
        self.take(np.concatenate((words.sum(2), words.sum(1)), 1))
        self._hash.update(view[whole:])

    def take(self, sums: Any) -> None:
        """Add blocks by the sums of their rows and columns, in the order of the blocks."""
        self._hash.update(sums)

    def hex(self) -> bytes:
        return self._hash.hexdigest().encode()


# ---------------------------------------------------------------- what has been verified

_MOST = 1000
_read: dict[Any, str] = {}  # the digests of the files that this process has read last


def identity_of(path: PathLike) -> Any:
    """The identity of a checkpoint, the same for all of its names; None if there is no file."""
    try:
        status = Path(path).stat()
        status = Path(path, INDEX).stat() if stat.S_ISDIR(status.st_mode) else status
    except OSError:
        return None
    return identity(status)


def digest_read(path: PathLike) -> str | None:
    """The digest of a checkpoint; None if this process has not read its present contents."""
    return _read.get(identity_of(path))


def identity(status: os.stat_result) -> tuple[int, ...]:
    """The identity of a file's contents. A change within one tick of the clock may not show."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def note_digest(status: os.stat_result, digest: str) -> None:
    _read[identity(status)] = digest
    if len(_read) > _MOST:
        del _read[next(iter(_read))]
