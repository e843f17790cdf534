"""Histories: of another program, and long ones."""

from __future__ import annotations

import cProfile
import json
import math
import pstats
from pathlib import Path
from typing import Any

import pytest
import torch
from warm import start

from batteries import CheckpointError, CheckpointManager, resume
from batteries._rundir.history import MetricsFile
from batteries.checkpoint import load_checkpoint
from batteries.checkpoint._directory import Epochs
from batteries.checkpoint._seal import read_note

PAGE = 4096


def save(logdir: str, *epochs: int) -> None:
    manager = CheckpointManager(logdir)
    for epoch in epochs:
        manager.process(1 / epoch, epoch, {"epoch": epoch})


def save_elsewhere(*epochs: int) -> None:
    process = start(save, "logs", *epochs)
    process.join()
    assert process.exitcode == 0


def content() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("logs").iterdir()}


def test_another_programs_history() -> None:
    """A program that has loaded nothing can neither save over another's epochs nor remove them."""
    save_elsewhere(1, 2, 3)
    before = content()
    with pytest.raises(
        CheckpointError, match=r"logs has checkpoints of another program \(process \d+ on .*; 3 ep"
    ):
        save("logs", 1)
    with pytest.raises(CheckpointError, match=r"Load the last one with resume\(\.\.\.\) before"):
        CheckpointManager("logs").save_last({"epoch": 3})
    assert content() == before
    resume("logs")
    save("logs", 2)
    assert [row["epoch"] for row in CheckpointManager("logs").history] == [1, 2]


def test_checkpoints_of_an_unknown_program() -> None:
    """A directory with a file of plain torch.save is refused, and the error names nobody."""
    Path("logs").mkdir()
    torch.save({"epoch": 1}, "logs/last.pth")
    with pytest.raises(CheckpointError, match=r"of another program \(an unknown process\), and"):
        save("logs", 1)


@pytest.mark.parametrize("way", ["the next epoch", "loaded", "go_on"])
def test_going_on(way: str) -> None:
    """The next epoch, a loaded last checkpoint and an explicit word go on with a history."""
    save_elsewhere(1, 2)
    manager = CheckpointManager("logs", go_on=way == "go_on")
    if way == "loaded":
        load_checkpoint("logs/last.pth")
    epoch = 3 if way == "the next epoch" else 2
    manager.process(0.1, epoch, {"epoch": epoch})
    assert [row["epoch"] for row in manager.history] == list(range(1, epoch + 1))


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_manager_that_never_saved(epoch: int) -> None:
    """A manager that was made first and saves later does not take over from one that saved."""
    older = CheckpointManager("logs", go_on=True)
    save_elsewhere(1, 2, 3)
    before = content()
    with pytest.raises(CheckpointError, match=r"logs belongs to a newer run by now \(process \d+"):
        older.process(0.1, epoch, {"epoch": epoch})
    assert content() == before


def test_names_of_scores() -> None:
    """A score's name that JSON would change is refused: the manager would not know its files."""
    scores: dict[Any, float] = {"loss": 0.5, 3: 1.0}
    with pytest.raises(TypeError, match="the score has the name 3; expected a string"):
        CheckpointManager("logs").process(scores, 1, {"epoch": 1})
    assert not Path("logs").exists()


def test_scores_that_are_too_large() -> None:
    """A score that `metrics.json` cannot have counts as infinite. The next manager can read it."""
    manager = CheckpointManager("logs")
    for epoch, score in ((1, 0.5), (2, 1e305)):
        manager.process(score, epoch, {"epoch": epoch})
    assert CheckpointManager("logs").history[0]["loss"] == manager.best_score == 0.5
    assert math.isnan(manager.history[1]["loss"])


def grown(epochs: int, save_n_best: int | None) -> CheckpointManager:
    """A manager that has saved that many epochs, as its memory tells it."""
    manager = CheckpointManager(f"{epochs}-{save_n_best}", save_n_best=save_n_best, keep_every=500)
    manager.process(0.0, 1, {"epoch": 1})
    for epoch in range(2, epochs + 1):
        manager._directory.epochs.add({"epoch": epoch, "loss": 1 + 1 / epoch})
    manager._directory.metrics_file.forget()
    manager.process(0.5, epochs + 1, {"epoch": epochs + 1})
    return manager


def calls_of_a_save(manager: CheckpointManager) -> int:
    epoch = manager.history[-1]["epoch"] + 1
    with cProfile.Profile() as profile:
        manager.process(0.7, epoch, {"epoch": epoch})
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


@pytest.mark.parametrize("save_n_best", [5, None])
def test_a_save_is_as_much_work_at_any_epoch(save_n_best: int | None) -> None:
    """At epoch 20,000 a save does what it does at epoch 200, and writes one line of scores."""
    short, long = (grown(epochs, save_n_best) for epochs in (200, 20_000))
    path = long.logdir / "metrics.json"
    before = path.stat()
    assert calls_of_a_save(long) < 1.2 * calls_of_a_save(short)
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_size == before.st_size
    rows = json.loads(path.read_text())["values"]
    assert [row["epoch"] for row in rows] == list(range(1, 20_003))
    assert len(json.dumps(read_note(long.last_path))) < 1000


def test_metrics_are_valid_at_each_moment() -> None:
    """A row changes one page of the file, or is in a new file: a kill between leaves it whole."""
    history, path = Epochs("loss", True), Path("metrics.json")
    file, before, inode, grew = MetricsFile(path), b"", 0, 0
    for epoch in range(1, 300):
        history.add({"epoch": epoch, "loss": 1 / epoch, **dict.fromkeys("abc", epoch % 7 / 3)})
        file.add("loss", True, history.rows)
        after = path.read_bytes()
        assert json.loads(after)["values"] == history.rows
        if path.stat().st_ino == inode:
            assert len(after) == len(before)
            size = range(0, len(after), PAGE)
            assert sum(before[at : at + PAGE] != after[at : at + PAGE] for at in size) == 1
            grew += 1
        before, inode = after, path.stat().st_ino
    assert grew > 200


def test_a_torn_row() -> None:
    """Where a power cut tore the last row of metrics.json, it comes from the checkpoint."""
    save("logs", 1, 2, 3)
    path = Path("logs/metrics.json")
    text = path.read_text()
    path.write_text(text[: text.rindex('"loss"')])
    assert [row["epoch"] for row in CheckpointManager("logs").history] == [1, 2, 3]
    assert json.loads(path.read_text()) == json.loads(text)


def test_copies_of_metrics_stay(tmp_path: Path) -> None:
    """A hard link that somebody made to metrics.json keeps what it had."""
    manager: Any = grown(200, 5)
    (tmp_path / "copy").hardlink_to(manager.logdir / "metrics.json")
    before = (tmp_path / "copy").read_bytes()
    calls_of_a_save(manager)
    assert (tmp_path / "copy").read_bytes() == before
