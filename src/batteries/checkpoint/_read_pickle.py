"""Read a pickle of torch.save fast, with meta tensors."""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Set
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor, nn

from batteries.checkpoint._contents import registered


class Suspicious(Exception):  # noqa: N818 (the text says what is wrong)
    """A file would do something that no checkpoint does."""


class OldFormat(Suspicious):
    """A file has the format that torch.save had before zip files."""


class Unknown(Exception):  # noqa: N818 (not an error: torch.load knows more)
    """A file has a value that few checkpoints have."""


# What the pickles of torch.save call. torch.load calls more, such as bytearray(8 GiB).
CALLED = {
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
_BROKEN = LookupError, TypeError, ValueError, RuntimeError, AttributeError, struct.error


def outline(pickled: bytes, offsets: Mapping[str, int] | None = None) -> Any:
    """The values in the pickle of a file of torch.save, with meta tensors.

    It makes only plain containers, numbers, strings and meta tensors. torch.load on the meta device
    also makes other kinds of tensors, but takes three times as long.

    Args:
        offsets: Where in the file the records of the storages begin, by their names. The storages
            then have `_checkpoint_offset`, as torch.load's have.

    Raises:
        Unknown: It has other values, or is broken.
        Suspicious: It would take more time or memory than its size justifies.
    """
    return _run(_Reader(pickled, offsets=offsets))


def check_calls(pickled: bytes) -> None:
    """Raise if torch.load would call what torch.save does not write, or would run too long.

    A pickle can make a set of the same list a thousand times. It can also make a key of nested
    tuples whose hash takes for ever. Here, only containers are made. Other calls return None.
    """
    allowed = CALLED | registered().keys() | {"torch._utils _rebuild_wrapper_subclass"}
    try:
        _run(_Reader(pickled, allowed=allowed))
    except Unknown as error:
        raise Suspicious(f"its pickle is broken: {error}") from None


def met(value: Any, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Count the values that a walk through a value meets, and the letters in them and their places.

    Args:
        known: The results for values that were met before, by id.
    """
    if isinstance(value, str | bytes):
        return 1, len(value)
    if not isinstance(value, dict | list | tuple | set):
        return 1, 0
    if id(value) not in known:
        known[id(value)] = 1, 0  # a value that contains itself is refused later
        values, letters = 1, 0
        for key, part in value.items() if isinstance(value, dict) else zip(repeat(""), value):
            inside, more = met(part, known)
            name = len(key) if isinstance(key, str | bytes) else sum(met(key, known))
            values, letters = values + inside, letters + more + name * inside
        known[id(value)] = values, letters
    return known[id(value)]


def _run(reader: _Reader) -> Any:
    pickled = reader.data
    try:
        while (code := pickled[reader.at]) != _STOP:
            reader.at += 1
            _OPERATIONS[code](reader)
        (value,) = reader.stack
    except _BROKEN as error:
        raise Unknown(type(error).__name__) from None  # the error's own text may be endless
    return value


class _Reader:
    """The stack machine that runs a pickle."""

    __slots__ = ("allowed", "at", "data", "left", "marks", "memo", "offsets", "stack", "storages")

    def __init__(
        self,
        data: bytes,
        offsets: Mapping[str, int] | None = None,
        allowed: Set[str] | None = None,
    ) -> None:
        self.data = data
        self.offsets = offsets
        self.allowed = allowed  # the names that may be called; None: read, and do not inspect
        self.storages: dict[str, torch.UntypedStorage] = {}  # by the names of their records
        # The number of values that may still be copied or hashed: one key may be in many dicts.
        self.left = 10 * len(data)
        self.at = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []  # the stacks below
        self.memo: dict[int | bytes, Any] = {}  # by one byte, or by four bytes

    def take(self, size: int) -> bytes:
        """The next bytes. After the end there are fewer or none, and the next operation raises."""
        start = self.at
        self.at = end = start + size
        return self.data[start:end]

    def spend(self, values: int) -> None:
        self.left -= values
        if self.left < 0:
            raise Suspicious("it would copy or hash many more values than it has")

    def hash(self, *keys: Any) -> None:
        """Spend the cost of hashing keys. A tuple is walked through each time."""
        parts = [*keys]
        while parts:
            part = parts.pop()
            if type(part) is tuple:
                self.spend(1 + len(part))
                parts.extend(part)

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items


def _line(reader: _Reader) -> str:
    end = reader.data.index(b"\n", reader.at)
    return reader.take(end + 1 - reader.at)[:-1].decode()


def _global(reader: _Reader) -> None:
    name = _line(reader), _line(reader)
    if reader.allowed is None:
        reader.stack.append(_KNOWN[name])
    else:
        reader.stack.append(_Call(_EXECUTED.get(name, _nothing), " ".join(name)))


def _put(reader: _Reader) -> None:
    reader.memo[reader.data[reader.at]] = reader.stack[-1]
    reader.at += 1


def _long_put(reader: _Reader) -> None:
    reader.memo[_long_place(reader)] = reader.stack[-1]


def _get(reader: _Reader) -> None:
    reader.stack.append(reader.memo[reader.data[reader.at]])
    reader.at += 1


def _long_get(reader: _Reader) -> None:
    reader.stack.append(reader.memo[_long_place(reader)])


def _long_place(reader: _Reader) -> bytes:
    place = reader.take(4)
    if place[1:] == b"\0\0\0":  # for torch, it is the same place as its one byte
        raise ValueError("a long form of a short number")
    return place


def _mark(reader: _Reader) -> None:
    reader.marks.append(reader.stack)
    reader.stack = []


def _unicode(reader: _Reader) -> None:
    start = reader.at + 4
    reader.at = end = start + int.from_bytes(reader.data[reader.at : start], "little")
    reader.stack.append(str(reader.data[start:end], "utf-8", "surrogatepass"))


def _integer(size: int, signed: bool = False) -> Callable[[_Reader], None]:
    def push(reader: _Reader) -> None:
        reader.stack.append(int.from_bytes(reader.take(size), "little", signed=signed))

    return push


def _long(reader: _Reader) -> None:
    (size,) = reader.take(1)
    reader.stack.append(int.from_bytes(reader.take(size), "little", signed=True))


def _float(reader: _Reader) -> None:
    reader.stack.extend(struct.unpack(">d", reader.take(8)))


def _new(kind: Callable[[], Any]) -> Callable[[_Reader], None]:
    return lambda reader: reader.stack.append(kind())


def _tuple(reader: _Reader) -> None:
    items = tuple(reader.since_mark())
    reader.stack.append(items)


def _tuple_of(size: int) -> Callable[[_Reader], None]:
    def push(reader: _Reader) -> None:
        reader.stack[-size:] = [tuple(reader.stack[-size:])]

    return push


def _append(reader: _Reader) -> None:
    item = reader.stack.pop()
    _only(reader.stack[-1], list).append(item)


def _appends(reader: _Reader) -> None:
    items = reader.since_mark()
    _only(reader.stack[-1], list).extend(items)


def _set_item(reader: _Reader) -> None:
    value, key = reader.stack.pop(), reader.stack.pop()
    if type(key) is tuple:
        reader.hash(key)
    _only(reader.stack[-1], dict, OrderedDict, Counter)[key] = value


def _set_items(reader: _Reader) -> None:
    items = reader.since_mark()
    for key in items[::2]:
        if type(key) is tuple:
            reader.hash(key)
    pairs = zip(items[::2], items[1::2], strict=True)
    _only(reader.stack[-1], dict, OrderedDict, Counter).update(dict(pairs))


def _reduce(reader: _Reader) -> None:
    arguments = _only(reader.stack.pop(), tuple)
    call = _only(reader.stack.pop(), _Call)
    if reader.allowed is not None and call.name not in reader.allowed:
        raise Suspicious(f"it would call {call.name}")
    if reader.allowed is not None and call.name == _CALLS_ANOTHER:
        other = _only(arguments[0], _Call)
        if other.function is not _nothing or other.name not in reader.allowed:
            raise Suspicious(f"it would call {other.name}")
    for argument in arguments:
        if isinstance(argument, list | tuple | dict | set | str | bytes):
            reader.spend(len(argument))
    if call.function in (set, Counter, OrderedDict):
        for item in chain(*arguments):
            # The item itself is hashed or, if it is a pair, its first part.
            reader.hash(item, *(item[:1] if type(item) in (list, tuple) else ()))
    if call.function is _nothing:
        reader.spend(met(arguments, {})[0])  # torch may compare them, or print them in an error
    reader.stack.append(call.function(*arguments))


def _unsupported(reader: _Reader) -> None:
    """Torch refuses these operations, too."""
    refused = Unknown if reader.allowed is None else Suspicious
    raise refused(f"Unsupported operand {reader.data[reader.at - 1]}")


def _new_object(reader: _Reader) -> None:
    if reader.allowed is None:
        raise TypeError("an object of a class")
    _reduce(reader)


def _build(reader: _Reader) -> None:
    state = reader.stack.pop()
    if reader.allowed is not None:
        reader.spend(met(state, {})[0])
        return
    reader.spend(len(_only(state, dict)))
    _only(reader.stack[-1], OrderedDict).__dict__.update(state)


def _storage(reader: _Reader) -> None:
    identity = reader.stack.pop()
    if reader.allowed is not None:
        reader.spend(met(identity, {})[0])
        reader.stack.append(None)
        return
    name, dtype, key, _location, size = identity
    if name != "storage" or type(key) is not str:
        raise ValueError("an unknown kind of storage")
    if reader.offsets is None:
        reader.stack.append((_only(dtype, torch.dtype), None))
        return
    if key not in reader.storages:
        storage = torch.UntypedStorage(size * dtype.itemsize, device="meta")  # type: ignore[no-untyped-call]
        storage._checkpoint_offset = reader.offsets[key]
        reader.storages[key] = storage
    reader.stack.append((_only(dtype, torch.dtype), reader.storages[key]))


def _only(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise TypeError(f"unexpected {type(value).__name__}")
    return value


class _Call:
    """A function that a pickle may name."""

    def __init__(self, function: Callable[..., Any], name: str = "") -> None:
        self.function = function
        self.name = name


def _nothing(*_: Any) -> None:
    """The result of a call that is not executed."""


def _tensor(
    storage: tuple[torch.dtype, torch.UntypedStorage | None],
    offset: int,
    size: Any,
    stride: Any,
    requires_grad: bool,
    hooks: Any,
) -> Tensor:
    dtype, memory = storage
    if hooks or offset < 0:
        raise ValueError("a tensor with more than numbers")
    options: dict[str, Any] = {"dtype": dtype, "device": "meta", "requires_grad": requires_grad}
    if memory is None:
        return torch.empty_strided(size, stride, **options)
    steps = [(number - 1) * step for number, step in zip(size, stride, strict=True)]
    reach = 1 + sum(steps) if all(size) else 0
    if min(stride, default=0) < 0 or (offset + reach) * dtype.itemsize > memory.nbytes():
        raise ValueError("a tensor beyond its storage")
    same = torch.empty(0, dtype=dtype, device="meta").set_(memory, offset, size, stride)
    return same.requires_grad_(requires_grad)


def _typed_tensor(
    storage: tuple[torch.dtype, torch.UntypedStorage | None], *arguments: Any
) -> Tensor:
    """A tensor of a dtype that has no class of storages: float8, uint16 and others."""
    return _tensor((_only(arguments[-1], torch.dtype), storage[1]), *arguments[:-1])


def _parameter(data: Tensor, requires_grad: bool, hooks: Any) -> nn.Parameter:
    if hooks:
        raise ValueError("a parameter with hooks")
    return nn.Parameter(data, requires_grad)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError("bytes in another encoding")
    return text.encode(encoding)


_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_STORAGES = {name: dtype for dtype, name in torch.storage._dtype_to_storage_type_map().items()}
_CALLS_ANOTHER = "torch._tensor _rebuild_from_type_v2"  # its first argument is called
# These are also executed when a pickle is inspected: other calls may copy their results again and
# again, and that must be counted.
_EXECUTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "Counter"): Counter,
    ("__builtin__", "set"): set,
    ("builtins", "set"): set,
    ("torch", "Size"): torch.Size,
    ("_codecs", "encode"): _encode,
}
_KNOWN: dict[tuple[str, str], Any] = {
    **{name: _Call(function) for name, function in _EXECUTED.items()},
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Call(_typed_tensor),
    ("torch._utils", "_rebuild_parameter"): _Call(_parameter),
    ("torch.storage", "UntypedStorage"): torch.uint8,
    ("torch", "device"): _Call(torch.device),
    **{("torch", name): dtype for name, dtype in (_DTYPES | _STORAGES).items()},
}
_STOP = ord(".")
_KNOWN_OPERATIONS: dict[str, Callable[[_Reader], Any]] = {
    "\x80": lambda reader: reader.take(1),  # the protocol
    "c": _global,
    "q": _put,
    "r": _long_put,
    "h": _get,
    "j": _long_get,
    "(": _mark,
    "X": _unicode,
    "J": _integer(4, signed=True),
    "K": _integer(1),
    "M": _integer(2),
    "\x8a": _long,
    "G": _float,
    "N": _new(lambda: None),
    "\x88": _new(lambda: True),
    "\x89": _new(lambda: False),
    "}": _new(dict),
    "]": _new(list),
    ")": _new(tuple),
    "t": _tuple,
    "\x85": _tuple_of(1),
    "\x86": _tuple_of(2),
    "\x87": _tuple_of(3),
    "a": _append,
    "e": _appends,
    "s": _set_item,
    "u": _set_items,
    "R": _reduce,
    "\x81": _new_object,
    "b": _build,
    "Q": _storage,
}
_OPERATIONS = [_KNOWN_OPERATIONS.get(chr(code), _unsupported) for code in range(256)]
