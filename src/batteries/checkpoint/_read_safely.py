"""Check a file before it is loaded: what it would call, and how much memory it would take."""

from __future__ import annotations

import struct
import zipfile
from typing import Any, BinaryIO

import torch
from torch import Tensor

from batteries.checkpoint._contents import rebuilt
from batteries.checkpoint._read_pickle import OldFormat, Suspicious, met

_OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the beginning of torch's format before 1.6


def inspect_file(file: BinaryIO, size: int) -> tuple[bytes, list[zipfile.ZipInfo]]:
    """The pickle in a file, and the file's records. The pickle is not inspected yet.

    Records must not be compressed, and together not be longer than the file.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError) as error:
        file.seek(0)
        if file.read(len(_OLD)) == _OLD:
            raise OldFormat from error
        raise Suspicious(str(error)) from error
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise Suspicious("its records are compressed, which torch.save never does")
    if sum(record.file_size for record in records) > size:
        raise Suspicious("its records are longer than the file")
    file.seek(0)
    try:
        # Torch's own reader gives the same bytes as torch.load reads.
        pickled: bytes = torch._C.PyTorchFileReader(file).get_record("data.pkl")
    except (RuntimeError, UnicodeDecodeError) as error:  # torch's own text may not be UTF-8
        raise Suspicious(str(error)) from error
    return pickled, records


def storages_in(file: BinaryIO, records: list[zipfile.ZipInfo]) -> dict[str, tuple[int, int]]:
    """Where the records of storages begin, and their sizes, by their names in the pickle."""
    places = {}
    for record in records:
        _, found, name = record.filename.rpartition("/data/")
        if found:
            file.seek(record.header_offset + 26)  # a name and padding follow the header
            lengths = struct.unpack("<HH", file.read(4))
            places[name] = record.header_offset + 30 + sum(lengths), record.file_size
    return places


def why_endless(contents: Any, pickled: int) -> str:
    """Why a walk through a checkpoint would take too long; empty if it would not.

    One value may be in many places. A program that walks through a checkpoint, or prints it, meets
    the value in each of them. So the number of values that it would meet is limited.

    Args:
        pickled: The bytes of its pickle.
    """
    values, letters = met(contents, {})
    if values > 1_000_000 + 10 * pickled or letters > 10_000_000 + 200 * pickled:
        return f"a walk through it would meet {values:,} values and {letters:,} letters"
    return ""


def inspect_contents(contents: Any, size: int, pickled: bytes) -> None:
    """Raise if what was loaded is larger than its file, or takes too long to walk through."""

    def inspect(value: Any, place: str) -> Any:
        if hasattr(value, "__tensor_flatten__"):  # a tensor that is made of others
            for name in value.__tensor_flatten__()[0]:
                inspect(getattr(value, name), f"{place}.{name}")
        elif isinstance(value, Tensor) and value.layout == torch.strided:
            logical = value.numel() * value.element_size()
            if logical > size:
                raise Suspicious(
                    f"its tensor {place} has {logical:,} bytes, but the file has {size:,}"
                )
        return value

    try:
        if why := why_endless(contents, len(pickled)):
            raise Suspicious(why)
        rebuilt(contents, inspect)
    except RecursionError as error:
        raise Suspicious("it is nested too deep") from error
    except TypeError as error:  # contains itself, or unhashable keys
        raise Suspicious(str(error)) from error
