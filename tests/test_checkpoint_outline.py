"""The outline of a checkpoint is what torch.load makes of it on the meta device."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
from collections import Counter, OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batteries import CheckpointError, make_checkpoint
from batteries.checkpoint import peek, read_checkpoint
from batteries.checkpoint._contents import rebuilt
from batteries.checkpoint._read_pickle import Suspicious, Unknown, check_calls, outline


def pickle_of(value: Any) -> bytes:
    """The pickle in a file of torch.save."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    data: bytes = torch._C.PyTorchFileReader(file).get_record("data.pkl")
    return data


def pickled(value: Any) -> tuple[bytes, Any]:
    """The pickle in a file of torch.save, and what torch.load makes of it."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return pickle_of(value), torch.load(file, map_location="meta")


def described(value: Any) -> Any:
    """With tensors as what they are, so that == compares them."""

    def leaf(value: Any, place: str) -> Any:  # noqa: ARG001
        if isinstance(value, Tensor):
            form = value.dtype, value.size(), value.stride(), value.requires_grad, value.device.type
            return repr((type(value), form))
        return value

    return rebuilt(value, leaf)


def everything() -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    dtypes = [torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.complex64]
    return {
        **make_checkpoint("train", 70_000, model, optimizer, metrics={"loss": -0.5}),
        "numbers": [0, 255, 256, 65_536, -1, -(2**40), 2**1000, 1e300, True, None],
        "texts": ["", "é" * 300, "\ud800", b"some \xff bytes"],
        "tensors": [torch.zeros(2, 3, dtype=dtype).t() for dtype in dtypes],
        "learned": nn.Parameter(torch.zeros(())),
        "nested": {(1, ("a", 2)): [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], 3: {1, 2}},
        "counted": Counter("aab"),
        "ordered": OrderedDict(b=1, a=2),
        "torch": [torch.Size([2, 3]), torch.device("cuda:1"), torch.float32],
        "many": list(range(2000)),
    }


def test_the_same_as_torch() -> None:
    """All that checkpoints commonly hold is read as torch.load reads it."""
    data, expected = pickled(everything())
    found = outline(data)
    assert described(found) == described(expected)
    state = found["model_state_dict"]
    assert state._metadata == expected["model_state_dict"]._metadata


@pytest.mark.parametrize(
    "rare", [torch.eye(2).to_sparse(), torch.ones(2, dtype=torch.cfloat).conj()]
)
def test_rare_tensors(rare: Tensor) -> None:
    """What it does not know it says it does not know."""
    with pytest.raises(Unknown):
        outline(pickle_of([rare]))


@pytest.mark.parametrize("value", [print, io.BytesIO(b"a"), range(3), 1j])
def test_calls(value: Any) -> None:
    """A pickle that calls anything else is not executed."""
    with pytest.raises(Unknown):
        outline(pickle.dumps(value, protocol=2))


def test_broken_pickles() -> None:
    """Of 1,000 broken pickles each is read, or refused, and none does more."""
    data, _ = pickled(everything())
    chance, refused = random.Random(0), 0
    for _ in range(1000):
        broken = bytearray(data[: chance.randrange(len(data))] if chance.random() < 0.1 else data)
        for _ in range(chance.randint(1, 4)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        try:
            outline(bytes(broken))
        except Unknown:
            refused += 1
    assert 200 < refused < 1000


TUPLES = b")" + b"q\x00h\x00\x86" * 60  # of two of the one before, sixty times
NUMBERS = b"](" + b"".join(b"M" + struct.pack("<H", number) for number in range(2000)) + b"e"
TEXT = b"X" + struct.pack("<I", 2000) + b"a" * 2000 + b"X\6\0\0\0latin1\x86"
COSTLY = {
    "a key of tuples": b"}" + TUPLES + b"Ns",
    "a set of tuples": b"c__builtin__\nset\n]" + TUPLES + b"a\x85R",
    "a key after what is unknown": b"(ctorch.serialization\n_get_layout\n)R}" + TUPLES + b"Nst",
    "a thousand sets": b"c__builtin__\nset\nq\x01]("
    + b"K\x01" * 2000
    + b"eq\x02]"
    + b"h\x01h\x02\x85Ra" * 1000,
    **{
        f"a thousand of {kind}": b"(" + large + made + b"q\x02" + b"h\x01h\x02\x85R" * 1000 + b"t"
        for kind, large, made in [
            ("a set", b"c__builtin__\nset\nq\x01", NUMBERS + b"\x85R"),
            ("a new set", b"cbuiltins\nset\nq\x01", NUMBERS + b"\x85R"),
            ("sizes", b"ctorch\nSize\nq\x01", NUMBERS + b"\x85R"),
            ("bytes", b"c__builtin__\nset\nq\x01", b"c_codecs\nencode\n" + TEXT + b"R"),
        ]
    },
    "a thousand updates": b"ccollections\nOrderedDict\n)R}q\x01("
    + b"".join(b"M" + struct.pack("<H", number) + b"N" for number in range(2000))
    + b"ub"
    + b"h\x01b" * 1000,
}


@pytest.mark.parametrize("name", COSTLY)
def test_costly_pickles(name: str) -> None:
    """What would hash or copy for ever is refused before it is tried."""
    data = b"\x80\x02" + COSTLY[name] + b"."
    with pytest.raises(Suspicious, match="it would copy or hash many more values"):
        check_calls(data)
    with zipfile.ZipFile("bomb.pth", "w") as archive:
        for record, content in [("data.pkl", data), ("version", b"3\n"), ("byteorder", b"little")]:
            archive.writestr(f"a/{record}", content)
    for read in (peek, read_checkpoint):
        with pytest.raises(CheckpointError, match="would copy or hash many more"):
            read("bomb.pth")


LARGE = b"J\0\0\0\x7f\x85"  # the arguments (2 GiB,)
CALLS = {
    "a call": b"cbuiltins\nbytearray\n" + LARGE + b"R",
    "a new object": b"cbuiltins\nbytearray\n" + LARGE + b"\x81",
    "a place that has two names": b"ctorch.serialization\n_get_layout\nq\5"
    + b"cbuiltins\nbytearray\nr\5\0\0\0h\5"
    + LARGE
    + b"R\x87",
    "after what is unknown": b"ctorch.serialization\n_get_layout\n)Rcbuiltins\nbytearray\n"
    + LARGE
    + b"R\x86",
    "a call of what was made": b"c__builtin__\nset\n)R)R",
    "a call by a function of torch": b"ctorch._tensor\n_rebuild_from_type_v2\n("
    + b"cbuiltins\nbytearray\ncbuiltins\nbytearray\n"
    + LARGE
    + b"}tR",
    "bytes that grow": b"c_codecs\nencode\nX\1\0\0\0aX\3\0\0\0hex\x86R",
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_inspected(name: str) -> None:
    """What torch.save does not call is refused, in whatever way a pickle calls it."""
    with pytest.raises(Suspicious):
        check_calls(b"\x80\2" + CALLS[name] + b".")


def test_what_costs_nothing() -> None:
    """Common checkpoints pass, a key that stands in many dicts, and what only torch.load knows."""
    key = tuple(range(20))
    check_calls(pickle_of([{key: n} for n in range(1000)]))
    check_calls(pickle_of(everything()))
    check_calls(pickle_of([torch.eye(2).to_sparse(), 1j, torch.ones(2, dtype=torch.cfloat).conj()]))
