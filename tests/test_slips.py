"""Slips that anybody makes in a call: each is an error that says what was expected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from torch import nn

from batteries import (
    EMA,
    CheckpointManager,
    JsonLinesLogger,
    Predictions,
    Run,
    accumulate,
    average_checkpoints,
    blend,
    distribute,
    load_checkpoint,
    make_checkpoint,
    resume,
    save_checkpoint,
    start_run,
)
from batteries._rundir.record import read_record
from batteries.averaging import greedy_soup, save_average
from batteries.checkpoint import export_safetensors, latest
from batteries.data import DataLoader
from batteries.distributed import all_reduce, broadcast
from batteries.scoreboard import best_first, record_scores
from batteries.splits import OutOfFold, check_folds, look, make_folds

LINEAR: Any = nn.Linear(2, 1)
PATH: Any = "a.pth"
NAMES: Any = {"cnn": 1, "tree": 3}
SLIPS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a file to resume": (lambda _: resume("a.pth", LINEAR), "one checkpoint: read it with load_ch"),
    "a shard to resume": (lambda _: latest("sharded/last.dcp"), "or pass its directory"),
    "a path first": (lambda any_: save_checkpoint(PATH, any_), "the path comes second: save_ch"),
    "a model saved": (lambda any_: save_checkpoint(LINEAR, any_), "cannot hold this, a torch.nn"),
    "a model as checkpoint": (
        lambda _: CheckpointManager("logs").process(0.5, 1, LINEAR),
        r"the checkpoint is Linear\(.*; expected what make_checkpoint returns",
    ),
    "no checkpoint": (
        lambda any_: CheckpointManager("logs").process(0.5, 1, any_),
        "the checkpoint is None; expected what make_checkpoint returns",
    ),
    "a state of no run": (
        lambda _: Run(Path(), "", False, "").close("done"),  # type: ignore[arg-type]
        "state is 'done'; expected 'finished', 'stopped' or 'failed'",
    ),
    "a sampler of one epoch": (
        lambda _: DataLoader(range(3), sampler=iter([2, 0])),  # type: ignore[arg-type]
        "the sampler is a list_iterator, which ends after one epoch; pass a list",
    ),
    "a rank of no process": (lambda _: broadcast(1, src=1), "src is 1; expected a rank, 0 to 0"),
    "a list to reduce": (
        lambda _: all_reduce([1.0, 2.0], "max"),  # type: ignore[call-overload]
        r"all_reduce got \[1\.0, 2\.0\]; expected a number or a tensor",
    ),
    "ranks' own datasets": (
        lambda _: DataLoader(range(3), sharded="ranks"),  # type: ignore[arg-type]
        "sharded is 'ranks', but the loader divides the indices of this dataset among the ranks",
    ),
    "nothing saved": (lambda any_: save_checkpoint(any_, "b.pth"), "the checkpoint is None; expec"),
    "nothing as last": (
        lambda any_: CheckpointManager("logs").save_last(any_),
        "the checkpoint is None; expected what make_checkpoint returns",
    ),
    "over its source": (
        lambda _: export_safetensors("a.pth", "./a.pth"),
        r"would replace a\.pth, which it is made of",
    ),
    "an average over its part": (
        lambda _: save_average(["a.pth"], "a.pth"),
        r"would replace a\.pth, which it is made of",
    ),
    "parameters as a model": (
        lambda _: EMA(LINEAR.parameters()),
        r"model is <generator .*; expected a torch\.nn\.Module",
    ),
    "a model second": (lambda _: accumulate(LINEAR, [1]), r"model is \[1\]; expected a torch\.nn"),  # type: ignore[arg-type]
    "a device's name": (lambda _: distribute(LINEAR, "gpu"), "unknown device 'gpu': expected a to"),
    "an average's device": (lambda _: EMA(LINEAR, device="gpu"), "unknown device 'gpu': expected"),
    "a model to clip": (
        lambda _: next(iter(accumulate([torch.ones(1)], LINEAR)))[1].clip([LINEAR], 1.0),
        r"clip got Linear\(.*; expected an optimizer, or parameters",
    ),
    "no optimizer": (
        lambda _: next(iter(accumulate([torch.ones(1)], LINEAR)))[1].step(),
        "step got no optimizer: pass all of them",
    ),
    "folds' number": (lambda _: OutOfFold(5), r"folds is 5; expected what make_folds returns"),  # type: ignore[arg-type]
    "a fold's name": (lambda _: make_folds(6, 2)["0"], "fold is '0'; expected a whole number"),  # type: ignore[index]
    "a column's name": (
        lambda _: look({"a": [1]}, {"a": [2]}, ids="b"),
        r"there is no column 'b'; expected one of \['a'\]",
    ),
    "a group's name": (
        lambda _: look({"a": [1]}, {"a": [2]}, groups="b"),
        r"there is no column 'b'; expected one of \['a'\]",
    ),
    "a table's path": (lambda _: look("a.csv", "b.csv"), "data is a str; expected an array"),
    "weights' name": (
        lambda _: blend.mean([[0.1]], weights="equal"),  # type: ignore[arg-type]
        "weights is a str; expected an array",
    ),
    "a model's class": (
        lambda _: blend.stack([[0.1, 0.2]], [0, 1], dict),
        "model is <class 'dict'>; expected an object with fit and predict",
    ),
    "a stack of texts": (
        lambda _: blend.stack(
            [[0.1, 0.2] * 4], ["no", "yes"] * 4, RidgeClassifier(), "auc", folds=2
        ),
        r"model predicts classes such as .*; expected a model with predict_proba",
    ),
    "classes by name": (
        lambda _: blend.find_thresholds([0.1, 0.5, 0.9], ["low", "mid", "high"], "accuracy"),
        "the target has 'high', 'low', 'mid', whose order is not known; expected numbers",
    ),
    "a log directory as runs": (
        lambda _: best_first("runs"),
        r"runs is 'runs'; expected several runs: read_runs\(logdir\)",
    ),
    "no folds": (lambda _: record_scores(".", folds=[]), "folds is empty; expected the validation"),
    "a model first": (lambda _: load_checkpoint(LINEAR, PATH), "model is 'a.pth'; e"),
    "no step": (lambda any_: JsonLinesLogger("logs").log_metrics({"a": 1}, any_), "step is None; "),
    "a bare number": (lambda _: JsonLinesLogger("logs").log_metrics(NAMES["cnn"], 1), "1 was logg"),
    "half a fold": (lambda _: make_folds(6, 2.5), r"n_folds is 2\.5; expected a whole number"),  # type: ignore[arg-type]
    "labels as folds": (lambda _: make_folds(6, [0, 1]), r"n_folds is .*pass labels as targ"),  # type: ignore[arg-type]
    "a seed's name": (lambda _: make_folds(6, 2, seed="a"), "seed is 'a'; expected a whole number"),  # type: ignore[arg-type]
    "target": (lambda _: make_folds(6, 2, target=[0]), "no argument 'target': say targets="),  # type: ignore[call-arg]
    "a typo": (lambda _: make_folds(6, 2, taregts=[0]), "argument 'taregts': say targets="),  # type: ignore[call-arg]
    "test_size": (lambda _: make_folds(6, test_size=0.2), "'test_size': say n_folds=: each"),  # type: ignore[call-arg]
    "a color": (lambda _: make_folds(6, color=1), "'color': it takes data, n_folds, .* and path"),  # type: ignore[call-arg]
    "folds of numbers": (lambda any_: check_folds([0, 1], any_), r"folds is \[0, 1\]; expected wh"),  # type: ignore[arg-type]
    "named weights": (
        lambda _: blend.mean({"a": [0.1], "b": [0.2]}, weights=NAMES),
        "the weights are of cnn, tree, but the models are a, b",
    ),
    "masked": (
        lambda _: Predictions(1).add([0], x=np.ma.array([1.0], mask=[True])),
        r"x is a masked array: pass x\.filled",
    ),
}


@pytest.fixture(autouse=True)
def _checkpoints() -> None:
    save_checkpoint(make_checkpoint("train", 1, LINEAR), "a.pth")
    CheckpointManager("sharded", sharded=True).process(0.5, 1, {"epoch": 1})


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip(name: str) -> None:
    """It is named, and no file comes of it."""
    before = sorted(Path().rglob("*"))
    slip, text = SLIPS[name]
    with pytest.raises((TypeError, ValueError, NotADirectoryError), match=text):
        slip(None)
    assert sorted(Path().rglob("*")) == before


def test_what_is_no_slip() -> None:
    """One path is a list of one, numpy's whole numbers are numbers, any arguments are recorded."""
    state = average_checkpoints("a.pth")
    assert state["weight"].equal(LINEAR.weight)
    assert greedy_soup("a.pth", lambda _: 1.0, metric_minimization=True).paths == [Path("a.pth")]
    Path("a.csv").write_text("id,p\n1,0.5\n")
    assert blend.blend_files("a.csv")["p"].to_list() == [0.5]
    assert len(accumulate([1, 2], LINEAR, np.int64(2))) == 2
    for args in ("fast", [1, 2]):
        with start_run("runs", args, new=True) as run:
            pass
        record = read_record(run)
        assert record is not None
        assert record["sessions"][-1]["args"] == {"args": args}
