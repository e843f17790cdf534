from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from batteries import TensorBoardLogger


def read_scalars(logdir: str | Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(logdir)).Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def test_what_is_logged_is_read() -> None:
    """TensorBoard's own reader finds every number, under its joined name and at its step."""
    with TensorBoardLogger("events") as tensorboard:
        for step in (1, 2):
            loss = torch.tensor(step / 2, requires_grad=True)
            tensorboard.log_metrics({"train": {"loss": loss}, "lr": step}, step)
    assert read_scalars("events") == {
        "train/loss": [(1, 0.5), (2, 1.0)],
        "lr": [(1, 1.0), (2, 2.0)],
    }


def log_on_each_rank(directory: str) -> None:
    with TensorBoardLogger(directory) as tensorboard:
        tensorboard.log_metrics({"loss": 1.0}, step=1)


def test_rank_zero_writes(tmp_path: Path) -> None:
    """Rank 0 writes once what all ranks log."""
    assert run_ranks(log_on_each_rank, str(tmp_path), world_size=3) == [None] * 3
    assert len(list(tmp_path.iterdir())) == 1
    assert read_scalars(tmp_path) == {"loss": [(1, 1.0)]}


def test_tensorboard_is_missing() -> None:
    """Without tensorboard the error is the command that installs it."""
    script = (
        "import sys; sys.modules['tensorboard'] = None; import batteries\n"
        "batteries.TensorBoardLogger('events')"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: TensorBoardLogger needs tensorboard, which is not installed: "
        "pip install tensorboard"
    )
    assert not Path("events").exists()


@pytest.mark.gpu
def test_device_tensors() -> None:
    """Numbers on a GPU are logged as they are."""
    with TensorBoardLogger("events") as tensorboard:
        tensorboard.log_metrics({"loss": torch.tensor(0.5, device="cuda")}, 1)
    assert read_scalars("events") == {"loss": [(1, 0.5)]}
