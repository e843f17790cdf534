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
from batteries._files import make_directory
from batteries.loggers._wandb import read_offline

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


def test_wandb_run_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The id and the name in the environment are those of the run; a checkpoint's id is first."""
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    monkeypatch.setenv("WANDB_NAME", "my name")
    other = WandbLogger("logs")
    other.load_state_dict({"run_id": "theirs", "step": 3})
    with WandbLogger("logs") as logger:
        logger.log_metrics({"loss": 0.5}, step=7)
    assert (logger.run_id, other.run_id) == ("mine", "theirs")
    [path] = Path("logs").glob("wandb/offline-run-*-mine/run-mine.wandb")
    assert any(record.run.display_name == "my name" for record in read_offline(path))


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


def test_mlflow_run_of_the_environment(monkeypatch: pytest.MonkeyPatch, new_store: Path) -> None:
    """The run in MLFLOW_RUN_ID is written into and ended, in the store that MLflow itself uses."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{shutil.copy(new_store, Path.cwd())}")
    run = client.create_run(client.create_experiment("mine"))
    client.log_metric(run.info.run_id, "loss", 0.1, step=9)
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    with MLflowLogger("logs") as logger:
        logger.log_metrics({"loss": 0.25}, step=1)
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted(metric.step for metric in history) == [1, 9]
    assert client.get_run(run.info.run_id).info.status == "FINISHED"


def test_mlflow_experiment_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, new_store: Path
) -> None:
    """The program's experiment is used: by its id in MLflow's own store, by its name in any."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{shutil.copy(new_store, Path.cwd())}")
    number = client.create_experiment("mine")
    with monkeypatch.context() as inside, MLflowLogger("logs") as logger:
        inside.setenv("MLFLOW_EXPERIMENT_ID", number)  # as `mlflow.set_experiment` does
        logger.log_metrics({"loss": 0.25}, step=1)
        logger.close()
    assert len(client.search_runs([number])) == 1
    store = Path(shutil.copy(new_store, make_directory("logs"))).resolve()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "named")
    with MLflowLogger("logs") as logger:
        logger.log_metrics({"loss": 0.25}, step=1)
    assert mlflow.MlflowClient(f"sqlite:///{store}").get_experiment_by_name("named")
