from __future__ import annotations

import json
from argparse import Namespace
from collections import OrderedDict, UserDict
from dataclasses import InitVar, dataclass, field
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

import attrs
import pydantic
import pydantic.v1
import pytest
import torch
from torch import nn

from batteries import JsonLinesLogger, make_checkpoint, save_checkpoint, start_run


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow", protected_namespaces=())
    width: int = 32
    folder: Path = Path("data")
    word: pydantic.SecretStr = pydantic.SecretStr("c0ffee1")


@attrs.define
class Data:
    model: Model = attrs.field(factory=lambda: Model(more=1))  # type: ignore[call-arg]
    scale: tuple[float, ...] = (0.5, 1.0)


class Schedule(NamedTuple):
    data: Data
    warmup: int = 10


@dataclass
class Config:
    schedule: Schedule = field(default_factory=lambda: Schedule(Data()))
    rest: Any = field(default_factory=lambda: SimpleNamespace(a=UserDict(b=Model())))


class Kind(Enum):
    FAST = "fast"


class Old(pydantic.v1.BaseModel):
    rate: float = 0.5
    word: pydantic.v1.SecretStr = pydantic.v1.SecretStr("c0ffee2")


@dataclass
class Values:
    """Its `rate` is an argument of `__init__` alone, so no attribute says what it was."""

    rate: InitVar[float] = 0.1
    count: ClassVar[int] = 3
    kind: Kind = Kind.FAST
    kinds: dict[Kind, int] = field(default_factory=lambda: {Kind.FAST: 1})
    day: date = date(2026, 1, 2)
    wait: timedelta = timedelta(seconds=5)
    share: Decimal = Decimal("0.1")
    number: UUID = field(default_factory=lambda: UUID(int=5))
    folder: PurePosixPath = field(default_factory=lambda: PurePosixPath("a/b"))
    page: Any = field(default_factory=lambda: pydantic.HttpUrl("https://a.org/b"))
    old: Any = field(default_factory=Old)


VALUES = {
    "kind": "fast",
    "kinds": {"fast": 1},
    "day": "2026-01-02",
    "wait": "0:00:05",
    "share": "0.1",
    "number": "00000000-0000-0000-0000-000000000005",
    "folder": "a/b",
    "page": "https://a.org/b",
    "old": {"rate": 0.5, "word": "***"},
}
MODEL = {"width": 32, "folder": "data", "word": "***"}
DATA = {"model": {**MODEL, "more": 1}, "scale": [0.5, 1.0]}
CONFIG = {"schedule": {"data": DATA, "warmup": 10}, "rest": {"a": {"b": MODEL}}}


@pytest.mark.parametrize(
    ("config", "plain"),
    [
        (Model(), MODEL),
        (Data(), DATA),
        (Schedule(Data()), CONFIG["schedule"]),
        (Config(), CONFIG),
        (Namespace(config=Config(), lr=0.1), {"config": CONFIG, "lr": 0.1}),
        (OrderedDict(config=Config()), {"config": CONFIG}),
        (Values(rate=0.5), VALUES),
    ],
    ids=["pydantic", "attrs", "named-tuple", "dataclass", "namespace", "dict", "values"],
)
def test_configurations(config: Any, plain: dict[str, Any]) -> None:
    """A record, a checkpoint and a logger get the same plain values of any configuration."""
    checkpoint = make_checkpoint("train", 1, nn.Linear(1, 1), args=config, secret=Model().word)
    save_checkpoint(checkpoint, "last.pth")
    loaded = torch.load("last.pth")
    assert json.loads(json.dumps(loaded["args"])) == plain  # a tuple stays one in a checkpoint
    with start_run("runs", config) as run:
        pass
    assert json.loads((run.path / "run.json").read_text())["sessions"][0]["args"] == plain
    with JsonLinesLogger("logs") as logger:
        logger.log_params(config)
    assert "folder" in Path("logs/metrics.jsonl").read_text()


class Base:
    rate = 0.1
    kind: ClassVar[Any] = nn.Linear

    @property
    def twice(self) -> float:
        return 2 * self.rate

    def method(self) -> None: ...


class CFG(Base):
    size = 8


class ConfigDict:
    """As that of ml_collections: a mapping that is registered as none."""

    def __init__(self, **fields: Any) -> None:
        self._fields = fields

    def keys(self) -> Any:
        return self._fields.keys()

    def items(self) -> Any:
        return self._fields.items()

    def to_dict(self) -> dict[str, Any]:
        return dict(self._fields)

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]


def test_classes_with_attributes() -> None:
    """The arguments may be attributes of a class, of its bases and of its object, or items."""
    changed = CFG()
    changed.rate = 0.5
    kind = "<class 'torch.nn.modules.linear.Linear'>"
    for config, plain in (
        (CFG, {"rate": 0.1, "kind": kind, "size": 8}),
        (CFG(), {"rate": 0.1, "kind": kind, "size": 8}),
        (changed, {"rate": 0.5, "kind": kind, "size": 8}),
        (ConfigDict(rate=0.1, model=ConfigDict(size=8)), {"rate": 0.1, "model": {"size": 8}}),
    ):
        with start_run("runs", config, new=True) as run:
            pass
        recorded = json.loads((run.path / "run.json").read_text())["sessions"][0]["args"]
        assert recorded == plain


def test_devices() -> None:
    """A record says a device and a dtype as torch prints them; a checkpoint keeps them."""
    config = {"device": torch.device("cuda", 1), "dtype": torch.float16}
    save_checkpoint(make_checkpoint("train", 1, nn.Linear(1, 1), args=config), "last.pth")
    assert torch.load("last.pth")["args"] == config
    with start_run("runs", config) as run:
        pass
    recorded = json.loads((run.path / "run.json").read_text())["sessions"][0]["args"]
    assert recorded == {"device": "cuda:1", "dtype": "torch.float16"}
