from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from batteries import JsonLinesLogger, make_checkpoint, save_checkpoint, start_run

omegaconf = pytest.importorskip("omegaconf", reason="omegaconf is not installed: make ecosystem")
pytestmark = pytest.mark.beside("omegaconf")


@dataclass
class Wrapped:
    config: Any


def test_configurations() -> None:
    """Interpolations are resolved, also inside other objects; a missing value is "???"."""
    text = {"lr": 0.1, "sizes": [1, {"rate": "${lr}"}], "missing": "???"}
    plain = {"lr": 0.1, "sizes": [1, {"rate": 0.1}], "missing": "???"}
    config = Wrapped(omegaconf.OmegaConf.create(text))
    save_checkpoint(make_checkpoint("train", 1, nn.Linear(1, 1), args=config), "last.pth")
    assert torch.load("last.pth")["args"] == {"config": plain}
    with start_run("runs", config.config) as run, JsonLinesLogger(run) as logger:
        logger.log_params(config.config)
    assert json.loads((run.path / "run.json").read_text())["sessions"][0]["args"] == plain


def test_what_cannot_be_resolved() -> None:
    """An interpolation without a value stays as it is. A node of one value becomes this value."""
    values = {"a": 1, "b": "${a}", "c": "${nope}", "d": {"e": "${a}", "f": ["${a}", "${nope}"]}}
    config: dict[str, Any] = {"all": omegaconf.OmegaConf.create(values)}
    plain: dict[str, Any] = {
        "all": {"a": 1, "b": 1, "c": "${nope}", "d": {"e": 1, "f": [1, "${nope}"]}}
    }
    single: dict[str, Any] = {
        "number": omegaconf.IntegerNode(4),
        "none": omegaconf.DictConfig(None),
        "missing": omegaconf.DictConfig("???"),
    }
    plain |= {"number": 4, "none": None, "missing": "???"}
    config |= single
    save_checkpoint(make_checkpoint("train", 1, nn.Linear(1, 1), args=config), "last.pth")
    assert torch.load("last.pth")["args"] == plain
    with start_run("runs", config) as run:
        pass
    assert json.loads((run.path / "run.json").read_text())["sessions"][0]["args"] == plain
