"""Check a file before it is loaded: what it would call, and how much memory it would take."""

from __future__ import annotations

import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import torch
from torch import Tensor

from batteries.checkpoint._contents import rebuilt, registered
from batteries.checkpoint._read_pickle import OldFormat, Suspicious, met

# What the pickles of torch.save call. torch.load calls more, such as bytearray(8 GiB).
_CALLED = {
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_parameter_with_state",
    "torch._utils _rebuild_sparse_tensor",
    "torch._utils _rebuild_qtensor",
    "torch._tensor _rebuild_from_type_v2",
    "torch.serialization _get_layout",
    "torch Size",
    "torch device",
    "collections Counter",
    "collections OrderedDict",
    "__builtin__ complex",
    "__builtin__ set",
    "builtins set",
    "_codecs encode",
}


_OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the beginning of torch's format before 1.6

# Every file names storages and dtypes. Torch's reader does not call them.
_HARMLESS = _CALLED | {
    f"torch {name}"
    for name in dir(torch)
    if name.endswith("Storage") or isinstance(getattr(torch, name), torch.dtype)
}


def inspect_file(file: BinaryIO, size: int) -> tuple[bytes, list[zipfile.ZipInfo]]:
    """The pickle in a file, and its records. Loading this pickle calls only what torch.save writes.

    Records must be stored, not compressed, and together no longer than the file. The pickle is
    read, not executed.
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
    if not is_usual(pickled):
        _inspect_pickle(pickled)
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


def is_usual(pickled: bytes) -> bool:
    """Whether a pickle uses no class that a program has passed to `add_safe_globals`."""
    return _names_in(pickled) <= _HARMLESS


def _names_in(pickled: bytes) -> set[str]:
    """All globals that a pickle could name. Strings that look alike are found too."""
    return {
        f"{module} {name}"
        for module, name in re.findall(r"c([\w.]+)\n([\w.]+)\n", pickled.decode("latin1"))
    }


def inspect_contents(contents: Any, size: int, pickled: bytes) -> None:
    """Raise if what was loaded is larger than its file, or takes too long to walk through.

    One value may be in many places, and a program that walks through a checkpoint, or prints it,
    meets it in each. So their number is limited.
    """

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
        values, letters = met(contents, {})
        if values > 1_000_000 + 10 * len(pickled) or letters > 10_000_000 + 200 * len(pickled):
            raise Suspicious(f"a walk through it would meet {values:,} values")
        rebuilt(contents, inspect)
    except RecursionError as error:
        raise Suspicious("it is nested too deep") from error
    except TypeError as error:  # contains itself, or unhashable keys
        raise Suspicious(str(error)) from error


def _operations(pickled: bytes) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # strange escapes in strings, which are not used
        yield from pickletools.genops(pickled)


def _inspect_pickle(pickled: bytes) -> None:
    """Follow the stack of a pickle, to see what each call would call."""
    stack: list[object] = []  # names of globals, and None for all other values
    memo: dict[int, object] = {}
    mark = object()
    allowed = _CALLED | {*registered(), "torch._utils _rebuild_wrapper_subclass"}
    try:
        for operation, argument, _ in _operations(pickled):
            name = operation.name
            if name in ("BINPUT", "LONG_BINPUT", "PUT"):
                memo[argument] = stack[-1]
                continue
            if name in ("REDUCE", "NEWOBJ"):
                called = stack[-2]
                if called not in allowed:
                    raise Suspicious(f"it would call {called or 'what it has made itself'}")
            before = operation.stack_before
            if pickletools.markobject in before:
                while stack.pop() is not mark:
                    pass
                before = before[: before.index(pickletools.markobject)]
            if before:
                del stack[-len(before) :]
            if name == "MARK":
                stack.append(mark)
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                stack.append(memo[argument])
            elif name == "GLOBAL":
                stack.append(argument)
            else:
                stack.extend([None] * len(operation.stack_after))
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise Suspicious(f"its pickle is broken: {error}") from error
