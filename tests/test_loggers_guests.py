"""Trackers that the program uses itself, beside the loggers."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import warm
from trackers import new_store, pytestmark, query_mlflow, read_wandb, wait_until

from batteries import MLflowLogger, WandbLogger

__all__ = ["new_store", "pytestmark"]  # a fixture, and where these tests run


def test_wandb_run_of_the_program() -> None:
    """The program's active run is written into and stays open; one that is asked for is apart."""
    import wandb

    silent = wandb.Settings(silent=True, console="off")
    with wandb.init(project="mine", mode="offline", dir=str(Path.cwd()), settings=silent) as run:
        with WandbLogger("logs") as logger:
            logger.log_metrics({"loss": 0.5}, step=7)
        assert logger.run_id == run.id
        assert wandb.run is run
        with WandbLogger("apart", run_id="apart") as other:
            other.log_metrics({"loss": 0.25}, step=1)
        assert wandb.run is run
        run.log({"mine": 1})
    wait_until(lambda: read_wandb("."))  # W&B may still be writing when its run has ended
    assert read_wandb(".") == {"loss": [(7, 0.5)], "mine": [(0, 1)]}
    assert read_wandb("apart") == {"loss": [(1, 0.25)]}
    assert not Path("logs/wandb").exists()


UNDER_AN_AGENT = """
from batteries import WandbLogger
with WandbLogger("logs") as logger:
    logger.log_metrics({"loss": 0.5}, step=1)
print(logger.run_id)
"""


def test_wandb_under_an_agent() -> None:
    """The id of a run that a sweep's agent has started is used, and nothing is missed."""
    told = {"WANDB_SWEEP_ID": "sweep", "WANDB_RUN_ID": "agents", "WANDB_PROJECT": "mine"}
    program = [sys.executable, "-c", UNDER_AN_AGENT]
    result = warm.run(program, env={**os.environ, **told}, capture_output=True, text=True)
    assert result.stdout.split() == ["agents"], result.stderr
    assert "fails, and training goes on" not in result.stderr
    assert read_wandb("logs") == {"loss": [(1, 0.5)]}


def test_mlflow_address_of_the_program(monkeypatch: pytest.MonkeyPatch, new_store: Path) -> None:
    """The environment's address is used, and the program's active run, which stays open."""
    import mlflow

    uri = f"sqlite:///{shutil.copy(new_store, Path.cwd())}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with MLflowLogger("logs") as logger:
        logger.log_metrics({"loss": 0.5}, step=1)
    assert query_mlflow(uri) == {"loss": [(1, 0.5)]}
    number = mlflow.MlflowClient(uri).create_experiment("mine")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", number)
    with mlflow.start_run() as run, MLflowLogger("logs") as logger:
        mlflow.log_metric("loss", 0.1, step=9)
        logger.log_metrics({"loss": 0.25}, step=1)
        logger.close()
        mlflow.log_metric("mine", 1.0)
    found = mlflow.MlflowClient(uri).get_run(run.info.run_id)
    assert (found.info.status, found.info.experiment_id) == ("FINISHED", number)
    history = mlflow.MlflowClient(uri).get_metric_history(run.info.run_id, "loss")
    assert sorted(metric.step for metric in history) == [1, 9]
    with MLflowLogger("logs") as logger:  # the experiment that the program has chosen
        logger.log_metrics({"loss": 0.125}, step=1)
    assert len(mlflow.MlflowClient(uri).search_runs([number])) == 2
    assert not Path("logs/mlflow.db").exists()
