"""Files of older versions: `of_version_0_1` is the run of a program that used batteries 0.1.0."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from batteries import EMA, CheckpointManager, JsonLinesLogger, resume
from batteries.data import DataLoader
from batteries.report import write_report
from batteries.scoreboard import read_run

OLD = Path(__file__).parent / "of_version_0_1"


@pytest.fixture
def run() -> Path:
    return Path(shutil.copytree(OLD, "runs/001"))


def test_a_run_is_resumed(run: Path) -> None:
    """All states are those that the older version had: the weights, the average and the place."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    ema = EMA(model, decay=0.5)
    rows: Any = torch.arange(8.0).view(4, 2)
    data = DataLoader(rows, batch_size=1, shuffle=True, seed=1)
    with JsonLinesLogger(run) as logger:
        old = resume(run, model, optimizer, scheduler, ema=ema, loader=data, logger=logger)
    assert old is not None
    assert (old["epoch"], old["metrics"]) == (2, {"loss": 0.5})
    torch.testing.assert_close(model.weight, torch.tensor([[0.2408, 0.1796]]), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        ema.module.weight, torch.tensor([[0.2846, 0.2260]]), rtol=0, atol=1e-4
    )
    assert scheduler.last_epoch == 2
    assert optimizer.param_groups[0]["lr"] == 0.025
    # What batteries 0.1.0 yields at this place.
    assert [batch.tolist() for batch in data] == [[[2, 3]], [[6, 7]]]
    assert [batch.tolist() for batch in data] == [[[0, 1]], [[4, 5]], [[6, 7]], [[2, 3]]]


def test_the_history_goes_on(run: Path) -> None:
    """A worse epoch is not the best one; the older version's scores stay."""
    manager = CheckpointManager(run, metric="loss", metric_minimization=True, save_n_best=1)
    manager.process(score=0.75, epoch=3, checkpoint={"x": torch.zeros(1)})
    assert torch.load(manager.best_path)["epoch"] == 2
    assert '"loss": 1.0' in (run / "metrics.json").read_text()


def test_a_run_is_read(run: Path) -> None:
    """The record, scores and metrics are shown, and the page has them."""
    info = read_run(run)
    assert (info.state, info.problems) == ("finished", [])
    assert info.record["sessions"][-1]["args"] == {"lr": 0.1, "steps": 3}
    assert info.scores == {"validation": 0.5, "test": 0.25, "leaderboard": {"public": 0.75}}
    [stage] = info.stages
    assert stage.rows == [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5}]
    write_report("runs", "report.html")
    assert '"leaderboard.public":[0.75]' in Path("report.html").read_text()
