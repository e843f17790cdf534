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
