from __future__ import annotations

import json
from argparse import Namespace
from collections import OrderedDict, UserDict
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import attrs
import pydantic
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
    ],
    ids=["pydantic", "attrs", "named-tuple", "dataclass", "namespace", "dict"],
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
