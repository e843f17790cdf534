"""Trackers that the program uses too, beside our loggers."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from trackers import query_mlflow, read_wandb, wait_until

from batteries import MLflowLogger, TrackioLogger, WandbLogger

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, about themselves


@pytest.mark.beside("W&B", package="wandb")
def test_wandb_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, `watch` and our logger write into the program's run, and leave it open."""
    wandb: Any = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    silent = wandb.Settings(silent=True, console="off")
    model = nn.Linear(1, 1)
    with wandb.init(project="mine", dir=str(Path.cwd()), settings=silent) as run:
        run.watch(model, log_freq=1)
        with WandbLogger("logs") as logger:
            for step in (1, 2):
                model(torch.ones(1, 1)).sum().backward()
                logger.log_metrics({"loss": 0.5 / step}, step)
        assert wandb.run is run
    # W&B's server may still write when `finish` has returned.
    wait_until(lambda: len(read_wandb(".").get("loss", [])) == 2)
    assert read_wandb(".")["loss"] == [(1, 0.5), (2, 0.25)]


@pytest.mark.beside("MLflow", package="mlflow")
def test_mlflow_autolog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our logger writes into the active run of autolog, and each value once."""
    mlflow: Any = pytest.importorskip("mlflow")
    uri = f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    from sklearn.linear_model import LinearRegression

    mlflow.set_experiment("batteries")
    mlflow.autolog(log_models=False, silent=True)
    try:
        with mlflow.start_run() as run:
            LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
            with MLflowLogger("logs") as logger:
                logger.log_metrics({"loss": 0.5}, step=3)
            assert mlflow.active_run().info.run_id == run.info.run_id
    finally:
        mlflow.autolog(disable=True)
    found = query_mlflow(uri)
    assert found["loss"] == [(3, 0.5)]
    assert found["training_mean_squared_error"][0][1] == pytest.approx(0.0)


@pytest.mark.beside("Trackio", package="trackio")
def test_trackio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our logger has its own run, and the run of the program stays active."""
    monkeypatch.setenv("TRACKIO_DIR", str(Path("trackio").resolve()))
    trackio: Any = pytest.importorskip("trackio")
    trackio.init(project="beside", name="mine", embed=False, auto_log_cpu=False)
    with TrackioLogger("logs", project="beside", run_id="a" * 16) as logger:
        logger.log_metrics({"loss": 0.5}, step=3)
        logger.log_image("batch", np.zeros((4, 4)), step=3)
        trackio.log({"own": 1.0}, step=4)
    trackio.log({"own": 2.0}, step=5)
    trackio.finish()
    storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    rows = {run.name: storage.get_logs("beside", run.name) for run in trackio.Api().runs("beside")}
    assert [(row["step"], row["own"]) for row in rows["mine"]] == [(4, 1.0), (5, 2.0)]
    ours = rows["logs-aaaaaaaa"]
    assert [(row["step"], row["loss"]) for row in ours if "loss" in row] == [(3, 0.5)]
    assert any("batch" in row for row in ours)
