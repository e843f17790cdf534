from __future__ import annotations

from pathlib import Path

import pytest
from ranks import run_ranks

from batteries import run_directory


def test_numbers_never_repeat() -> None:
    """Each call has a new directory, and no existing file is touched."""
    first = run_directory("runs")
    (first / "log.txt").write_text("precious")
    assert [run_directory("runs").name for _ in range(3)] == ["002", "003", "004"]
    assert (first / "log.txt").read_text() == "precious"


def test_resume() -> None:
    """Resuming takes the newest run, or makes the first."""
    assert run_directory("runs", resume=True).name == "001"
    (Path("runs") / "1000").mkdir()
    (Path("runs") / "notes").mkdir()
    assert run_directory("runs", resume=True).name == "1000"
    assert run_directory("runs").name == "1001"


def test_finished_runs_are_not_resumed() -> None:
    """A run that has written its last file is finished: the next one is new."""
    first = run_directory("runs", resume=True, unless="scores.json")
    assert run_directory("runs", resume=True, unless="scores.json") == first
    (first / "scores.json").touch()
    assert run_directory("runs", resume=True, unless="scores.json").name == "002"


def ask_for_one(logdir: str) -> str:
    return run_directory(logdir).name


def test_ranks_agree(tmp_path: Path) -> None:
    """All ranks of a program get the same directory."""
    assert run_ranks(ask_for_one, str(tmp_path), world_size=3) == ["001"] * 3


def ask_alone(logdir: str) -> list[str]:
    return [run_directory(logdir).name for _ in range(20)]


def test_programs_do_not_collide(tmp_path: Path) -> None:
    """Programs that start at the same moment get different directories."""
    alone = {"WORLD_SIZE": "1", "RANK": "0"}
    results = run_ranks(ask_alone, str(tmp_path), world_size=3, group=False, env=alone)
    names = [name for result in results for name in result]
    assert len(set(names)) == len(names) == 60


def test_logdir_that_is_a_file() -> None:
    """A log directory that is a file is named."""
    Path("runs").touch()
    with pytest.raises(NotADirectoryError, match="runs is a file"):
        run_directory("runs")
