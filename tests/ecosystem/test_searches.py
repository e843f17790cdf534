"""Searches over hyperparameters: each trial is a run of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from batteries import CheckpointManager, load_checkpoint, make_checkpoint, seed_all, start_run
from batteries.scoreboard import read_runs

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, about themselves


def train(logdir: str, lr: float, prune: Any = None) -> float:
    """Three epochs towards 1, in a directory of its own; the loss that is left."""
    with start_run(logdir, {"lr": lr}) as run:
        seed_all(0)
        model = nn.Linear(1, 1, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        manager = CheckpointManager(run, metric="loss", metric_minimization=True)
        loss = torch.zeros(())
        for epoch in range(1, 4):
            optimizer.zero_grad()
            loss = (model(torch.ones(1, 1)) - 1).square().sum()
            loss.backward()
            optimizer.step()
            manager.process(loss.item(), epoch, make_checkpoint("train", epoch, model))
            if prune is not None:
                prune(epoch, loss.item())
        return loss.item()


@pytest.mark.beside("optuna")
def test_optuna() -> None:
    """Each trial is a run, a pruned trial is closed, and the best trial is the best run."""
    optuna = pytest.importorskip("optuna", reason="optuna is not installed: make ecosystem")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rates = iter([0.05, 0.3, 0.001])

    def objective(trial: Any) -> float:
        def prune(epoch: int, loss: float) -> None:
            trial.report(loss, epoch)
            if trial.number == 2:
                raise optuna.TrialPruned  # after its first epoch

        rate = next(rates)
        trial.suggest_float("lr", rate, rate)
        return train("runs", rate, prune)

    study = optuna.create_study()
    study.optimize(objective, n_trials=3)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED"]
    runs = read_runs("runs")
    assert [run.record["sessions"][0]["args"]["lr"] for run in runs] == [0.05, 0.3, 0.001]
    assert runs[0].state == runs[1].state == "finished"
    assert runs[2].state != "running"
    epochs = [load_checkpoint(run.path / "last.pth")["epoch"] for run in runs]
    assert epochs == [3, 3, 1]
    assert study.best_params == {"lr": 0.3}


@pytest.mark.beside("ray")
def test_ray() -> None:
    """Tasks in ray's processes write their own runs, with the same losses as one process."""
    ray = pytest.importorskip("ray", reason="ray is not installed: make ecosystem")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        remote = ray.remote(train_by_value())
        found = ray.get([remote.remote(f"{rate}", rate) for rate in (0.05, 0.3)])
    finally:
        ray.shutdown()
    assert found == [train("here", rate) for rate in (0.05, 0.3)]


def train_by_value() -> Any:
    """`train` as a function that ray sends whole: its processes do not find this file."""
    ray_cloudpickle = pytest.importorskip("ray.cloudpickle")
    ray_cloudpickle.register_pickle_by_value(__import__(__name__))
    return train
