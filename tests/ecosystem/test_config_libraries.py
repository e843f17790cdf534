"""Configurations: the record of a run, a checkpoint and a logger have their plain values."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from batteries import JsonLinesLogger, make_checkpoint, save_checkpoint, start_run

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, about themselves


@dataclass
class Optimizer:
    name: str = "adam"
    lr: float = 0.1


@dataclass
class Config:
    optimizer: Optimizer = field(default_factory=Optimizer)
    sizes: tuple[int, ...] = (1, 2)


PLAIN = {"optimizer": {"name": "sgd", "lr": 0.1}, "sizes": [1, 2]}


def hydra() -> Any:
    library = pytest.importorskip("hydra", reason="hydra-core is not installed: make ecosystem")
    Path("conf").mkdir()
    Path("conf/config.yaml").write_text("optimizer: {name: adam, lr: 0.1}\nsizes: [1, 2]\n")
    with library.initialize_config_dir(str(Path("conf").absolute()), version_base=None):
        return library.compose("config", overrides=["optimizer.name=sgd"])


def omegaconf() -> Any:
    library = pytest.importorskip("omegaconf", reason="omegaconf is not installed: make ecosystem")
    values = {"base": 0.1, "optimizer": {"name": "sgd", "lr": "${base}"}, "sizes": [1, 2]}
    config = library.OmegaConf.create(values)
    library.OmegaConf.resolve(config)
    del config["base"]
    return config


def tyro() -> Any:
    library = pytest.importorskip("tyro", reason="tyro is not installed: make ecosystem")
    return library.cli(Config, args=["--optimizer.name", "sgd"])


def pydantic() -> Any:
    library = pytest.importorskip("pydantic")
    inner = library.create_model("Optimizer", name=(str, "sgd"), lr=(float, 0.1))
    return library.create_model("Config", optimizer=(Any, inner()), sizes=(Any, (1, 2)))()


def attrs() -> Any:
    library = pytest.importorskip("attrs")
    return library.make_class("Config", ["optimizer", "sizes"])(Optimizer("sgd"), (1, 2))


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(hydra, marks=pytest.mark.beside("hydra", package="hydra-core")),
        pytest.param(omegaconf, marks=pytest.mark.beside("omegaconf")),
        pytest.param(tyro, marks=pytest.mark.beside("tyro")),
        pytest.param(pydantic, marks=pytest.mark.beside("pydantic")),
        pytest.param(attrs, marks=pytest.mark.beside("attrs")),
    ],
)
def test_configurations(made: Any) -> None:
    """A record, a checkpoint and a logger store a configuration as plain values."""
    config = made()
    save_checkpoint(make_checkpoint("train", 1, nn.Linear(1, 1), args=config), "last.pth")
    assert json.loads(json.dumps(torch.load("last.pth")["args"])) == PLAIN
    with start_run("runs", config) as run, JsonLinesLogger(run) as logger:
        logger.log_params(config)
    assert json.loads((run.path / "run.json").read_text())["sessions"][0]["args"] == PLAIN
    logged = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[0])
    assert "sgd" in json.dumps(logged)
