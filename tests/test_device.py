from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Iterator, Mapping, MutableMapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from batteries import t2d, to_device
from batteries._device import moved_by

# Storage without data: a device that every machine has and that is not the CPU.
ELSEWHERE = torch.device("meta")


class Pair(NamedTuple):
    x: Tensor
    y: object


Untyped = namedtuple("Untyped", "a b")


@dataclasses.dataclass(frozen=True)
class Frozen:
    image: Tensor
    name: str
    area: Tensor = dataclasses.field(init=False, default_factory=lambda: torch.zeros(1))


class Labels(list[Any]):
    pass


class Moving:
    """Has a `.to` of its own."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def to(self, device: torch.device) -> Moving:
        return Moving(str(device))


class Passive:
    tensor = torch.zeros(1)


def tensor() -> Tensor:
    return torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("data", "tensors"),
    [
        (tensor(), lambda d: [d]),
        ([tensor(), [tensor()]], lambda d: [d[0], d[1][0]]),
        ((tensor(), 1), lambda d: [d[0]]),
        (Labels([tensor()]), lambda d: [d[0]]),
        ({"a": {"b": tensor()}}, lambda d: [d["a"]["b"]]),
        (OrderedDict(a=tensor()), lambda d: [d["a"]]),
        (MappingProxyType({"a": tensor()}), lambda d: [d["a"]]),
        (Pair(tensor(), (tensor(),)), lambda d: [d.x, d.y[0]]),
        (Untyped(tensor(), "b"), lambda d: [d.a]),
        (torch.max(tensor(), dim=1), lambda d: [d.values, d.indices]),
        (Frozen(tensor(), "b"), lambda d: [d.image, d.area]),
        (pack_sequence([tensor()]), lambda d: [d.data]),
        (nn.Linear(2, 2), lambda d: [d.weight]),
    ],
    ids=lambda case: type(case).__name__,
)
def test_moves_tensors_anywhere(data: Any, tensors: Any) -> None:
    """Tensors anywhere inside move, and every type around them stays what it was."""
    moved = to_device(data, ELSEWHERE)
    assert type(moved) is type(data)
    assert all(part.device == ELSEWHERE for part in tensors(moved))


def test_leaves_its_argument_alone() -> None:
    """What was passed still lies where it lay."""
    batch = {"x": [tensor()], "frozen": Frozen(tensor(), "b")}
    to_device(batch, ELSEWHERE)
    assert batch["x"][0].device.type == batch["frozen"].area.device.type == "cpu"  # type: ignore


def test_keeps_everything_else() -> None:
    """Strings, numbers, None and arrays pass unharmed, the same objects."""
    array, passive = np.zeros(2), Passive()
    data = ["text", b"bytes", 1, 2.5, True, None, array, np.float32(1), {1, 2}, passive, Tensor]
    assert all(a is b for a, b in zip(to_device(data, ELSEWHERE), data, strict=True))
    assert passive.tensor.device.type == "cpu"


def test_keeps_the_factory_of_a_defaultdict() -> None:
    """A defaultdict is one afterwards, with its factory."""
    moved = to_device(defaultdict(list, a=[tensor()]), ELSEWHERE)
    assert moved["a"][0].device == ELSEWHERE
    assert moved["new"] == []


def test_objects_move_themselves() -> None:
    """An object with a `.to(device)` of its own is asked to move itself."""
    assert to_device([Moving()], ELSEWHERE)[0].device == "meta"


class Output(OrderedDict[str, Any]):
    """A dict whose items are attributes too, as the outputs of well-known models are."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        object.__setattr__(self, key, value)


@dataclasses.dataclass
class ModelOutput(Output):
    logits: Any = None

    def __post_init__(self) -> None:
        self["logits"] = self.logits


class Wrapping(MutableMapping[str, Any]):
    """Keeps its items in a dict of its own."""

    def __init__(self, items: Mapping[str, Any]) -> None:
        self._items = dict(items)

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._items[key] = value

    def __delitem__(self, key: str) -> None:
        del self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


def test_items_and_attributes_agree() -> None:
    """A dict that is a dataclass too moves as a whole."""
    moved = to_device(ModelOutput(logits=tensor()), ELSEWHERE)
    assert isinstance(moved, ModelOutput)
    assert moved.logits is moved["logits"]
    assert moved.logits.device == ELSEWHERE


def test_mappings_with_items_inside() -> None:
    """A Mapping that wraps a dict is not changed by moving it."""
    mapping = Wrapping({"x": tensor()})
    assert to_device(mapping, ELSEWHERE)["x"].device == ELSEWHERE
    assert mapping["x"].device.type == "cpu"


class Couple(tuple):  # type: ignore[type-arg]
    def __new__(cls, first: Any, second: Any) -> Couple:
        return super().__new__(cls, (first, second))


class Row(Mapping[str, Any]):
    def __init__(self, name: str, value: Any) -> None:
        self.items_ = {name: value}

    def __getitem__(self, name: str) -> Any:
        return self.items_[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.items_)

    def __len__(self) -> int:
        return len(self.items_)


class ReadOnly(dict[str, Any]):
    def __setitem__(self, name: str, value: Any) -> None:
        raise RuntimeError("frozen")


@pytest.mark.parametrize(
    "data",
    [Couple(tensor(), 1), Row("x", tensor()), ReadOnly(x=tensor())],
    ids=["tuple", "map", "dict"],
)
def test_what_cannot_be_made_again(data: Any) -> None:
    """A mapping or tuple whose class is not made of its items is named, with what to do."""
    text = f"a {type(data).__name__} of a batch cannot be made again .*give it a method `to"
    with pytest.raises(TypeError, match=text):
        to_device([data], "meta")


def test_lists_keep_their_attributes() -> None:
    """A list of a class of its own keeps what else it has."""
    labels = Labels([tensor()])
    labels.name = "train"  # type: ignore[attr-defined]
    moved = to_device(labels, ELSEWHERE)
    assert moved.name == "train"  # type: ignore[attr-defined]
    assert labels[0].device.type == "cpu"


class Asking:
    """Has a `.to` that knows `non_blocking`."""

    def to(self, device: torch.device, non_blocking: bool = False) -> tuple[torch.device, bool]:
        return device, non_blocking


def test_non_blocking_reaches_those_that_know_it() -> None:
    """`non_blocking` is passed on to objects whose `.to` takes it."""
    moved: Any = to_device([Asking(), nn.Linear(1, 1)], ELSEWHERE, non_blocking=True)
    assert moved[0] == (ELSEWHERE, True)


def test_values_arrive() -> None:
    """On the same device nothing is copied; the values are the same."""
    batch = (torch.arange(3), {"y": torch.ones(2)})
    assert to_device(batch, "cpu")[0] is batch[0]
    assert t2d is to_device


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPUs")
def test_rank_without_gpus() -> None:
    """On a machine without GPUs a rank means the CPU."""
    assert to_device(tensor(), 3).device.type == "cpu"


@pytest.mark.parametrize("device", ["gpu", "cuda:x", ""])
def test_unknown_device(device: str) -> None:
    """An unknown device is refused in the user's words, with what is expected."""
    with pytest.raises(ValueError, match=rf"unknown device '{device}': expected a torch.device"):
        to_device(tensor(), device)


def test_absent_gpu() -> None:
    """A GPU that is not there is refused with how many there are."""
    count = torch.cuda.device_count()
    with pytest.raises(ValueError, match=f"no device 'cuda:99': this machine has {count} GPUs"):
        to_device("even without tensors", "cuda:99")


def test_what_is_no_device() -> None:
    """Also a value that cannot be a key of a dict is named."""
    with pytest.raises(ValueError, match=r"unknown device \[0\]: expected a torch.device"):
        to_device(torch.ones(1), [0])  # type: ignore[arg-type]


def test_other_absent_devices() -> None:
    """Any kind of device that the machine does not have is refused alike."""
    with pytest.raises(ValueError, match="no device 'xpu' on this machine"):
        to_device(tensor(), "xpu")
    with pytest.raises(ValueError, match="no device 'ipu' on this machine") as told:
        to_device(tensor(), "ipu")
    assert len(str(told.value)) < 200


def test_copies_of_a_function() -> None:
    """A function copies the tensors, but objects with their own `to` move themselves."""
    copied = []

    def copy(data: Tensor, device: torch.device) -> Tensor:
        copied.append(data)
        return data.to(device)

    packed: PackedSequence = pack_sequence([torch.ones(3)])
    batch = {"pair": Pair(tensor(), packed), "module": nn.Linear(2, 1), "own": Moving()}
    moved: Any = moved_by(copy, batch, ELSEWHERE)
    assert moved["pair"].x.is_meta
    assert moved["pair"].y.data.is_meta
    assert moved["module"].weight.is_meta
    assert moved["own"].device == "meta"
    assert len(copied) == 1


@pytest.mark.gpu
def test_non_blocking_copies() -> None:
    """Pinned tensors arrive whole with non_blocking, packed sequences too."""
    pinned = torch.arange(1000.0).pin_memory()
    packed: PackedSequence = pack_sequence([torch.ones(3)])
    moved, sequence = to_device((pinned, packed), 0, non_blocking=True)
    torch.cuda.synchronize()
    assert moved.cpu().equal(pinned)
    assert sequence.data.device == torch.device("cuda", 0)
