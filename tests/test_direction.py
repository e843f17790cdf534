"""Whether lower or higher is better is said by the user, by one rule everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics
from test_cli import outputs
from test_scoreboard import make_run
from torch import nn

from batteries import CheckpointManager, EarlyStopping, make_checkpoint, save_checkpoint
from batteries.averaging import greedy_soup
from batteries.blend import find_threshold, find_weights

TARGET = [0, 1] * 10
SCORES = [0.2, 0.7, 0.4, 0.9] * 5


def distance(target: Any, prediction: Any) -> float:
    return float(np.abs(np.asarray(target) - prediction).mean())


def soup(**options: Any) -> object:
    save_checkpoint({"model_state_dict": {"w": torch.ones(1)}}, "a.pth")
    return greedy_soup(["a.pth"], lambda state: float(state["w"]), **options)


PLACES: dict[str, Callable[..., object]] = {
    "CheckpointManager": lambda **o: CheckpointManager("logs", metric="accuracy", **o),
    "EarlyStopping": lambda **o: EarlyStopping(3, **o),
    "greedy_soup": soup,
    "find_weights": lambda **o: find_weights([SCORES] * 2, TARGET, distance, rounds=2, **o),
    "find_threshold": lambda **o: find_threshold(SCORES, TARGET, distance, **o),
}


@pytest.mark.parametrize("place", PLACES)
def test_the_direction_is_said(place: str) -> None:
    """A metric without its direction is an error that says what to pass; so is half of a word."""
    for options in ({}, {"metric_minimization": None}, {"metric_minimization": "max"}):
        expected = rf"{place}.* whether lower is better: pass metric_minimization=True .*=False"
        with pytest.raises(TypeError, match=expected):
            PLACES[place](**options)
    for said in (True, np.False_):
        PLACES[place](metric_minimization=said)


def test_known_directions() -> None:
    """Only a loss without a name, and metrics that are known by name, go without."""
    assert CheckpointManager("logs").metric_minimization
    find_weights([SCORES] * 2, TARGET, "auc")
    find_weights([SCORES] * 2, TARGET, metrics.log_loss, rounds=2)
    find_threshold(SCORES, TARGET, metrics.accuracy_score)


def test_the_specification_s_spelling() -> None:
    """The specification's own lines keep the best of an accuracy."""
    manager = CheckpointManager(
        logdir=Path("logs"), metric="accuracy", metric_minimization=False, save_n_best=5
    )
    for epoch, score in enumerate([0.5, 0.9, 0.7], start=1):
        checkpoint = make_checkpoint("train", epoch, nn.Linear(1, 1))
        manager.process(score=score, epoch=epoch, checkpoint=checkpoint)
    assert torch.load("logs/best.pth")["epoch"] == 2
    assert json.loads(Path("logs/metrics.json").read_text())["metric_minimization"] is False


def test_runs_come_best_first() -> None:
    """`batteries runs` has the best first, by the direction in metrics.json; unknown ones last."""
    for accuracy in (0.5, 0.9, 0.7):
        make_run([accuracy])  # 001 to 003
    for loss in (0.4, 0.3):
        make_run([loss], metric="loss", minimization=True)  # 004, 005
    make_run([])  # 006
    path = next(Path("runs/001").rglob("metrics.json"))
    memory = json.loads(path.read_text())
    del memory["metric_minimization"]
    path.write_text(json.dumps(memory))
    record = Path("runs/001/run.json")
    record.write_text(record.read_text().replace('"minimization"', '"unknown"'))
    told, errors = outputs("runs", "runs", "--json")
    assert [row["run"] for row in json.loads(told)] == [
        "002", "003", "005", "004", "001", "006"
    ]  # fmt: skip
    assert "it does not say metric_minimization" in errors
    by_name = json.loads(outputs("runs", "runs", "--json", "--sort", "run")[0])
    assert [row["run"] for row in by_name] == sorted(row["run"] for row in by_name)
