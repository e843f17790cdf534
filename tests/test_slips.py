"""Slips that anybody makes in a call: each is an error that says what was expected."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn import metrics
from sklearn.linear_model import RidgeClassifier
from torch import nn

from batteries import (
    EMA,
    AverageMeter,
    CheckpointManager,
    JsonLinesLogger,
    Loggers,
    Predictions,
    PreemptionGuard,
    Run,
    accumulate,
    average_checkpoints,
    blend,
    distribute,
    load_checkpoint,
    make_checkpoint,
    predictions,
    resume,
    save_checkpoint,
    set_backends,
    start_run,
)
from batteries._rundir.record import read_record
from batteries.averaging import greedy_soup, save_average
from batteries.checkpoint import export_safetensors, latest
from batteries.data import DataLoader, Shuffle
from batteries.distributed import all_reduce, broadcast
from batteries.scoreboard import (
    Metric,
    RunInfo,
    best_first,
    compare,
    paired_bootstrap,
    read_runs,
    record_scores,
)
from batteries.splits import Folds, OutOfFold, check_folds, fold_indices, look, make_folds

pd: Any = pytest.importorskip("pandas")
LINEAR: Any = nn.Linear(2, 1)
SGD: Any = torch.optim.SGD(LINEAR.parameters())
PATH: Any = "a.pth"
NAMES: Any = {"cnn": 1, "tree": 3}
LISTED: Any = [1]
NAN = float("nan")
HALF: Any = 0.5
TABLE = {"a": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
DAYS = np.arange(6).astype("datetime64[D]")
AB = np.array([0, 1, 1, 1, 1, 1])
FOLDS = Folds(np.array([0, 1] * 3), "kfold")


def fit(features: Any, target: Any) -> None:
    """The `fit` of a model that learns nothing."""


def stacked(fit: Any, **methods: Any) -> Any:
    """A stack of a model with these methods."""
    oof = np.random.default_rng(0).random((2, 36))
    return blend.stack(oof, [0, 1] * 18, SimpleNamespace(fit=fit, **methods), folds=2)


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
    "a rank of no process": (lambda _: broadcast(1, src=1), "src is 1; expected a rank of the gr"),
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
    "an optimizer as a model": (
        lambda _: make_checkpoint("train", 1, SGD, LINEAR),
        "model is a SGD: pass the model, the optimizer and the scheduler in this order",
    ),
    "a scheduler as an optimizer": (
        lambda _: resume("logs", LINEAR, torch.optim.lr_scheduler.StepLR(SGD, 1), SGD),
        "optimizer is a StepLR: pass the model, the optimizer and the scheduler in this order",
    ),
    "a state stored twice": (
        lambda _: make_checkpoint("train", 1, LINEAR, model_state_dict={}),
        "two values would be stored as 'model_state_dict': give one another name",
    ),
    "one fold": (lambda _: record_scores(".", folds=HALF), "folds is 0.5; expected the validation"),
    "a function as a metric": (lambda _: record_scores(".", metric=len), "metric is <built-in"),  # type: ignore[arg-type]
    "a numbered leaderboard": (
        lambda _: record_scores(".", leaderboard={1: 0.5}),  # type: ignore[dict-item]
        "a leaderboard is called 1; expected a string",
    ),
    "a number as a switch": (
        lambda _: set_backends(cudnn_benchmark=1),  # type: ignore[arg-type]
        "cudnn_benchmark is 1; expected True or False",
    ),
    "a broken pattern": (
        lambda _: set_backends(ignore_warnings=["known", "("]),
        r"ignore_warnings has '\('; expected a regular expression \(missing \)",
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
    "a power of the geometric mean": (
        lambda _: blend.geometric([0.2], [0.8], 3),
        "pass weights and powers by name",
    ),
    "weights that are names": (
        lambda _: blend.mean([[0.1], [0.2]], weights=["cnn", "tree"]),  # type: ignore[list-item]
        r"the weights are \['cnn', 'tree'\]; expected numbers",
    ),
    "words and numbers": (
        lambda _: blend.majority_vote({"cnn": ["cat"], "tree": [1]}),
        "model 'tree' has other labels than model 'cnn'",
    ),
    "words for rmse": (
        lambda _: blend.find_weights([[0.1, 0.2]], ["cat", "dog"], "rmse"),
        "rmse needs a target of numbers; found 'cat'",
    ),
    "a named model": (
        lambda _: blend.find_weights({"cnn": [0.1, 2.0]}, [0, 1], "log_loss"),
        "model 'cnn' has numbers outside of 0 to 1",
    ),
    "a word in a list": (
        lambda _: blend.mean([[torch.tensor(1.0), "a"], [1, 2]]),
        r"model 0\[1\] is a str; expected an array",
    ),
    "one index": (
        lambda any_: Predictions(1).add(HALF, x=any_),
        r"indices have shape \(\) and dtype float64; expected integers, \(batch,\)",
    ),
    "a direction that is a word": (
        lambda _: read_runs(".", metric_minimization={"loss": NAMES}),
        r"pass metric_minimization=\{'loss': True\} for losses",
    ),
    "a run's bare number": (
        lambda any_: compare(NAMES["cnn"], any_),
        r'run is 1; expected a path, a name, or a number as a text, as in "7"',
    ),
    "a list of runs": (
        lambda _: compare(LISTED),
        r"needs two or more runs; found 1: compare\(\*runs\)",
    ),
    "one direction": (
        lambda _: read_runs(".", metric_minimization=True),  # type: ignore[arg-type]
        "metric_minimization is True; expected a direction for each metric by its name",
    ),
    "no direction": (
        lambda any_: Metric(0.5, 1, 1, (0.5, 1), (0.5, 1)).best(any_),
        "minimization is None; expected True if lower is better",
    ),
    "a list of conditions": (
        lambda _: read_runs(".").where(LISTED),
        r"\[1\] is not a condition: expected COLUMN",
    ),
    "one row": (
        lambda _: paired_bootstrap([1], [1], [0], "accuracy"),
        "have 1 rows; the noise of rows needs two or more",
    ),
    "three classes": (
        lambda _: paired_bootstrap([0, 1, 2], np.eye(3), np.eye(3), "roc_auc"),
        r"roc_auc needs two classes and \(rows,\) predictions; found predictions of shape \(3, 3\)",
    ),
    "runs to compare with": (
        lambda _: compare(RunInfo("a", Path("a")), RunInfo("b", Path("b")), among="runs"),
        r"among is 'runs'; expected several runs: read_runs\(logdir\)",
    ),
    "a guard's patience": (
        lambda _: PreemptionGuard(PATH),
        "patience is 'a.pth'; expected seconds",
    ),
    "a list to a meter": (
        lambda _: AverageMeter().update(LISTED),
        r"value is \[1\]; expected one numb",
    ),
    "an id's name": (
        lambda _: look(TABLE, TABLE, ids=["b"]),
        r"no column 'b'; expected one of \['a",
    ),
    "an id to leave out": (
        lambda _: check_folds(FOLDS, data=TABLE, ids=["b"]),
        r"no column 'b'; expected one of \['a",
    ),
    "targets of other rows": (
        lambda _: look(TABLE, TABLE, targets=[0, 1]),
        "there are 2 targets for 6 rows; expected one for each",
    ),
    "near what": (
        lambda _: check_folds(FOLDS, near="rounded"),
        "near= compares samples: pass data=",
    ),
    "a gap backwards": (
        lambda _: make_folds(6, 2, "time", gap=-1),
        "gap is -1; expected 0 or more",
    ),
    "a span backwards": (
        lambda _: make_folds(6, 2, "time", time=DAYS, gap=-timedelta(1)),
        r"gap is .*days=-1.*; expected 0 or more",
    ),
    "no window": (lambda _: make_folds(6, 2, "time", window=0), "window is 0; expected 1 or more"),
    "no columns": (lambda _: make_folds({}, 2), "there are 0 rows; expected 2 or more"),
    "a fold of one row": (
        lambda _: make_folds(2, 2, "time"),
        "there are 2 rows; expected 3 or more",
    ),
    "an array submitted": (
        lambda _: blend.check_submission("a.npy", "a.csv"),
        "a.npy is not a submission; expected .csv or .parquet",
    ),
    "a column without a name": (
        lambda _: blend.blend_files(["a.csv", "index.csv"]),
        "only one of them has ''; pass `columns`",
    ),
    "scores with NaN": (
        lambda _: blend.find_threshold([0.5, NAN], [0, 1], "accuracy"),
        "model 'oof' has nan in row 1; expected finite numbers",
    ),
    "no such device": (
        lambda _: distribute(LINEAR, "cuda:99"),
        "there is no device 'cuda:99': this m",
    ),
    "half a step": (lambda _: Loggers().log_metrics({}, HALF), r"step is 0\.5; expected a whole"),
    "strict to resume": (
        lambda _: resume("sharded", strict=PATH),
        r"strict is an option of load_checkpoint: load_checkpoint\(latest\(.*\), \.\.\., strict=",
    ),
    "an average on no device": (
        lambda _: EMA(LINEAR, device="cuda:99"),
        "there is no device 'cuda:99'",
    ),
    "a model on no device": (lambda _: distribute(LINEAR, "gpu"), "unknown device 'gpu': expected"),
    "half an epoch": (
        lambda any_: DataLoader(any_).set_epoch(PATH),
        "epoch is 'a.pth'; expected a",
    ),
    "half a batch": (lambda _: accumulate([1], LINEAR, PATH), "expected a whole number of batches"),
    "a place after the end": (
        lambda _: Shuffle(5, key=(1,))(np.array([7])),
        r"position 7 is outside of an order of 5 numbers",
    ),
    "too many to shuffle": (
        lambda _: Shuffle(2**63, key=(1,)),
        r"expected 0 or more, and at most 2\*\*62",
    ),
    "a power twice": (
        lambda _: blend.power_average([0.2], [0.8], 3, power=2),
        "power is 2, but 3 was passed as well: pass one power",
    ),
    "the area under any curve": (
        lambda _: blend.find_weights([[0.1, 0.2]], [0, 1], metrics.auc),
        "metric is sklearn.metrics.auc, which takes the points of a curve; expected roc_auc",
    ),
    "two columns of one name": (
        lambda _: blend.mean(pd.DataFrame([[0.1, 0.2]], columns=["1", "1"])),
        "more than one model is called '1': give each model its own name",
    ),
    "two keys of one name": (lambda _: blend.mean({1: [0.1], "1": [0.2]}), "is called '1': give"),
    "rows of other lengths": (
        lambda _: blend.mean({"cnn": [[0.1, 0.2], [0.3]]}),
        "model 'cnn' has parts of different lengths; expected an array",
    ),
    "pairs as folds": (
        lambda _: blend.find_weights([[0.1] * 6], [0, 1] * 3, "auc", folds=list(Folds(AB, "x"))),
        "folds has parts of different lengths; expected an array",
    ),
    "sparse predictions": (
        lambda _: blend.mean([torch.eye(2).to_sparse()]),
        "model 0 is a sparse, .* tensor, which numpy cannot hold: pass a dense tensor",
    ),
    "tensors without data": (
        lambda _: blend.mean([torch.empty(2, device="meta")]),
        "or meta tensor, which numpy cannot hold",
    ),
    "half folds": (
        lambda _: blend.find_weights([[0.1] * 3], [0, 1, 1], "auc", folds=[0, HALF, 1]),
        r"folds has 0\.5 in row 1; expected whole numbers or names",
    ),
    "an infinite fold": (
        lambda _: blend.find_threshold([0.1, 0.2], [0, 1], "auc", folds=[0, float("inf")]),
        "folds has inf in row 1; expected whole numbers or names",
    ),
    "repeats of folds": (
        lambda _: blend.find_weights([[0.1] * 2], [0, 1], "auc", folds=np.eye(2, dtype=int)),
        r"folds have shape \(2, 2\); expected \(rows,\)",
    ),
    "one target": (
        lambda _: blend.find_weights([[0.1]], HALF, "auc"),
        r"target is 0\.5; expected an array, a tensor or a list",
    ),
    "one target to score": (
        lambda _: OutOfFold(FOLDS).score(HALF, "auc"),
        r"targets is 0\.5; expected an array",
    ),
    "one target to divide": (
        lambda _: make_folds(6, 2, "stratified", targets=1),
        "targets is 1; expected an array",
    ),
    "one time": (lambda _: make_folds(6, 2, "time", time=1), "time is 1; expected an array"),
    "one group": (lambda _: check_folds(FOLDS, groups=1), "groups is 1; expected an array"),
    "one sample": (
        lambda _: check_folds(FOLDS, data=1),
        "data is 1; expected a table, an array or a list",
    ),
    "one number a column": (
        lambda _: look({"a": 1}, {"a": 1}),
        "column 'a' is 1; expected an array",
    ),
    "a table that is not read": (
        lambda _: look(TABLE, pl.LazyFrame(TABLE)),
        "data is a LazyFrame; expected an array",
    ),
    "models that are not read": (
        lambda _: blend.mean(pl.LazyFrame(TABLE)),
        "model 0 is a LazyFrame; expected an array",
    ),
    "one id": (
        lambda _: Predictions(0).save("b.npy", ids=HALF),
        r"ids is 0\.5; expected an array",
    ),
    "half a rank": (
        lambda _: Predictions(0).gather(dst=HALF),
        r"dst is 0\.5; expected a whole number",
    ),
    "predictions in CSV": (
        lambda _: predictions.load("a.csv"),
        r"a\.csv has an unknown format; expected \.parquet or \.npy",
    ),
    "labels in words": (
        lambda _: make_folds(6, 2, "stratified", targets=[["a", "b"]] * 6),
        "labels are of <U1; expected numbers, 0 if a row does not have the label",
    ),
    "an unknown label": (
        lambda _: make_folds(TABLE, 2, "stratified", targets=["a", "b"]),
        "there is no column 'b'",
    ),
    "a time in words": (
        lambda _: make_folds(6, 2, "time", time=list("abcdef")),
        "time has the dtype <U1, such as 'a'; expected dates or numbers",
    ),
    "folds of words": (
        lambda _: Folds(np.array(["a", "b"]), "kfold"),
        "assignment is of <U1; expected whole numbers",
    ),
    "a fold first": (
        lambda _: fold_indices(LISTED, 0),
        r"folds is \[1\]; expected what make_folds",
    ),
    "a method in a list": (
        lambda _: blend.blend_files("a.csv", LISTED),
        r"method is \[1\]; expected one of mean",
    ),
    "a search in a list": (
        lambda _: blend.find_weights([[0.1, 0.2]], [0, 1], "auc", LISTED),
        r"method is \[1\]; expected 'hill_climb'",
    ),
    "one end of a range": (
        lambda _: blend.check_submission("a.csv", "a.csv", ranges={"p": LISTED}),
        r"ranges\['p'\] is \[1\]; expected the lowest and the highest number, such as \(0, 1\)",
    ),
    "an open range": (
        lambda any_: blend.check_submission("a.csv", "a.csv", ranges={"p": (any_, 1)}),
        r"ranges\['p'\] is \(None, 1\); expected",
    ),
    "a range of no column": (
        lambda _: blend.check_submission("a.csv", "a.csv", ranges=LISTED),
        r"ranges is \[1\]; expected a mapping, such as \{'target': \(0, 1\)\}",
    ),
    "arrays submitted": (
        lambda _: blend.check_submission("arrays.parquet", "arrays.parquet"),
        "arrays.parquet has List.* in column 'p'; expected numbers or texts",
    ),
    "arrays in a CSV": (
        lambda _: blend.blend_files("arrays.npy", out="b.csv"),
        r"a \.csv cannot hold the arrays of column 'p': write \.parquet",
    ),
    "a space before a name": (
        lambda _: blend.blend_files(["a.csv", "space.csv"]),
        "only one of them has ' p', p; pass `columns`",
    ),
    "a model that only fits": (
        lambda _: stacked(fit),
        "model is .*; expected an object with fit and predict",
    ),
    "a model without classes": (
        lambda _: stacked(fit, predict_proba=lambda x: x),
        "model has no classes_ after fit, as scikit-learn's models with predict_proba",
    ),
    "a model of other classes": (
        lambda _: stacked(fit, predict_proba=lambda x: x[:, :2], classes_=np.array([0, 7])),
        "the classes_ of model are 0, 7; expected classes of the target: 0, 1",
    ),
    "a model of one column": (
        lambda _: stacked(fit, predict_proba=lambda x: x[:, 0], classes_=np.array([0, 1])),
        r"the predictions of model have shape \(18,\) for 18 rows; expected \(18, 2\)",
    ),
    "a model of too few rows": (
        lambda _: stacked(fit, predict=lambda x: x[1:, 0]),
        r"the predictions of model have shape \(17,\) for 18 rows; expected \(18, \.\.\.\)",
    ),
    "a model of nothing": (
        lambda _: stacked(fit, predict=lambda _: None),
        "what model predicts is a NoneType; expected an array",
    ),
    "a model of NaN": (
        lambda _: stacked(fit, predict=lambda x: x[:, 0] * NAN),
        "the stack has nan in row 0; expected finite numbers",
    ),
    "a model of words": (
        lambda _: stacked(fit, predict=lambda x: x[:, 0].astype(str)),
        r"model predicts classes such as '0\.\d+'; expected a model with predict_proba",
    ),
    "folds in another order": (
        lambda _: blend.find_weights(
            pd.DataFrame({"a": [0.1, 0.2, 0.3]}),
            [0, 1, 0],
            "auc",
            folds=pd.Series([0, 1, 2], index=[2, 1, 0]),
        ),
        "the folds and the predictions have the same rows in different orders",
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
    Path("a.csv").write_text("id,p\n1,0.5\n")
    Path("index.csv").write_text(",id,p\n0,1,0.5\n")
    Path("space.csv").write_text("id, p\n1,0.5\n")
    pl.DataFrame({"id": [1], "p": [[0.5]]}).write_parquet("arrays.parquet")
    arrays = Predictions(1)
    arrays.add([0], p=torch.zeros(1, 2))
    arrays.save("arrays.npy")


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip(name: str) -> None:
    """It is named, and no file comes of it."""
    before = sorted(Path().rglob("*"))
    slip, text = SLIPS[name]
    with pytest.raises((TypeError, ValueError, NotADirectoryError, IndexError), match=text):
        slip(None)
    assert sorted(Path().rglob("*")) == before


def test_what_is_no_slip() -> None:
    """One path is a list of one, numpy's whole numbers are numbers, any arguments are recorded."""
    state = average_checkpoints("a.pth")
    assert state["weight"].equal(LINEAR.weight)
    assert greedy_soup("a.pth", lambda _: 1.0, metric_minimization=True).paths == [Path("a.pth")]
    assert blend.blend_files("a.csv")["p"].to_list() == [0.5]
    assert blend.blend_files([Path("a.csv")], weights={Path("a.csv"): 2})["p"].to_list() == [0.5]
    assert blend.mean({0: [0.5], 1: [1.0]}, weights={0: 1, 1: 0}).tolist() == [0.5]
    assert len(accumulate([1, 2], LINEAR, np.int64(2))) == 2
    for args in ("fast", [1, 2]):
        with start_run("runs", args, new=True) as run:
            pass
        record = read_record(run)
        assert record is not None
        assert record["sessions"][-1]["args"] == {"args": args}
