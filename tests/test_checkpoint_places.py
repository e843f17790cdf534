"""Log directories that are full, read-only, gone, elsewhere, or have something in the way."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from mounts import remounted, tmpfs
from ranks import run_ranks
from test_checkpoint_crashes import manager, process_epoch, run_epochs, state, undisturbed
from torch import nn

from batteries import CheckpointError, CheckpointManager, make_checkpoint
from batteries.checkpoint import read_checkpoint

NUMBERS = 50_000  # a file of 200 KB
MODES = [None, "background", "sharded"]


def hidden(logdir: Path) -> list[Path]:
    return list(logdir.glob(".*"))


def save(checkpoints: CheckpointManager, epoch: int, numbers: int = 1) -> None:
    try:
        process_epoch(checkpoints, epoch, numbers)
    finally:
        checkpoints.wait()


@contextmanager
def filled(disk: Path, free: int) -> Iterator[None]:
    """Leave so many bytes free on a file system."""
    filler = disk / "filler"
    filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - free)))
    yield
    filler.unlink()


@pytest.mark.parametrize("mode", [None, "background"])
def test_full_disks(mode: str | None) -> None:
    """When a real disk is full at any tenth of a file: one error, nothing lost, and on it goes."""
    with tmpfs(Path("disk"), 2**20) as disk, manager(disk / "logs", mode) as checkpoints:
        save(checkpoints, 1, NUMBERS)
        size = checkpoints.last_path.stat().st_size
        for tenth in range(11):  # the last one: when the scores are written
            with filled(disk, size * tenth // 10 + 4096 * (tenth == 10)):
                with pytest.raises(OSError, match=r"takes about .* bytes are free") as told:
                    save(checkpoints, 2, NUMBERS)
                assert told.value.errno == errno.ENOSPC
                assert str(disk / "logs") in str(told.value)
                assert read_checkpoint(checkpoints.last_path)["epoch"] == 1 + (tenth == 10)
                assert not hidden(disk / "logs")
        save(checkpoints, 2, NUMBERS)
        assert state(disk / "logs") == undisturbed(2)


def test_disks_without_room_for_names() -> None:
    """Without an inode left the error says that; with two, what is pruned makes room."""
    with tmpfs(Path("disk"), 2**20, "nr_inodes=20") as disk:
        checkpoints = manager(disk / "logs")
        for epoch in (1, 2, 3, 4):
            save(checkpoints, epoch)
        fillers = [disk / f"filler {number}" for number in range(20)]
        with suppress(OSError):
            for filler in fillers:
                filler.touch()
        with pytest.raises(OSError, match=r"no room for another file: .*as it was"):
            save(checkpoints, 5)
        for filler in fillers[:2]:
            filler.unlink()
        for epoch in (5, 6, 7):
            save(checkpoints, epoch)
        assert state(disk / "logs") == undisturbed(7)


@pytest.mark.parametrize("mode", MODES)
def test_disks_that_become_read_only(mode: str | None) -> None:
    """A disk that can only be read is an error that says so, and can be looked at."""
    looking = "sharded" if mode == "sharded" else None
    with tmpfs(Path("disk"), 2**20) as disk, manager(disk / "logs", mode) as checkpoints:
        save(checkpoints, 1)
        with remounted(disk, "ro"):
            with pytest.raises((OSError, CheckpointError), match=r"Read-only .*logs"):
                save(checkpoints, 2)
            assert manager(disk / "logs", looking).best_score == 0.3
        save(checkpoints, 2)
        assert state(disk / "logs") == undisturbed(2, mode)


def save_as_a_user(directory: str) -> str:
    os.chdir(directory)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # permissions do not hold back root
    try:
        process_epoch(manager("logs"), 2)
    except PermissionError as error:
        return str(error)
    finally:
        os.seteuid(user)
    return ""


def test_directories_without_permission(tmp_path: Path) -> None:
    """A directory that may not be written to is named, with no word about room on the disk."""
    run_epochs("logs", 1)
    tmp_path.chmod(0o755)
    Path("logs").chmod(0o555)
    [told] = run_ranks(save_as_a_user, str(tmp_path), world_size=1, group=False)
    Path("logs").chmod(0o755)
    assert "Permission denied" in told
    assert "get the right to write to the directory logs, or choose another one" in told
    assert "free" not in told
    assert state("logs") == undisturbed(1)


@pytest.mark.parametrize("mode", MODES)
def test_directories_that_are_removed(mode: str | None) -> None:
    """A directory that is removed during the run is made again, and no score is forgotten."""
    suffix = ".dcp" if mode == "sharded" else ".pth"
    with manager("runs/logs", mode) as checkpoints:
        for epoch in (1, 2):
            save(checkpoints, epoch)
        shutil.rmtree("runs")
        save(checkpoints, 3)
        found = state("runs/logs")
    assert {name: found[name] for name in found if suffix in name} == {
        f"best{suffix}": 3,  # of those that are there
        f"exp_3{suffix}": 3,
        f"last{suffix}": 3,
    }
    assert [row["epoch"] for row in manager("runs/logs", mode).history] == [1, 2, 3]


def test_directories_that_are_removed_after_an_error() -> None:
    """Nor are scores forgotten when an error came between."""
    checkpoints = manager("logs")
    process_epoch(checkpoints, 1)
    shutil.rmtree("logs")
    Path("logs").touch()
    with pytest.raises(NotADirectoryError, match="logs is a file"):
        process_epoch(checkpoints, 2)
    Path("logs").unlink()
    Path("logs/last.pth").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        process_epoch(checkpoints, 2)
    Path("logs/last.pth").rmdir()
    process_epoch(checkpoints, 2)
    assert [row["epoch"] for row in checkpoints.history] == [1, 2]


@pytest.mark.parametrize("name", ["last", "best", "exp_4", "metrics.json"])
@pytest.mark.parametrize("mode", [None, "sharded"])
def test_directories_in_the_way(mode: str | None, name: str) -> None:
    """A directory with a name that a save needs is an error that names it, until it is gone."""
    checkpoints = manager("logs", mode)
    for epoch in (1, 2, 3):
        process_epoch(checkpoints, epoch)
    suffix = ".dcp" if mode else ".pth"
    path = Path("logs", name if "." in name else name + suffix)
    path.unlink(missing_ok=True)
    path.mkdir()
    with pytest.raises(OSError, match=rf"a directory is in the way, move logs/{path.name} away"):
        process_epoch(checkpoints, 4)
    assert not hidden(Path("logs"))
    path.rmdir()
    process_epoch(checkpoints, 4)
    assert state("logs") == undisturbed(4, mode)  # with the scores of all epochs


def save_large(directory: str, mode: str | None) -> None:
    os.chdir(directory)
    run_epochs("logs", 4, NUMBERS, mode)


@pytest.mark.parametrize("mode", MODES)
def test_temporary_directories_elsewhere(tmp_path: Path, mode: str | None) -> None:
    """A TMPDIR on another file system, with room for nothing, changes nothing."""
    with tmpfs(Path("small"), 64 * 2**10) as small:
        env = {"TMPDIR": str(small.absolute())}
        args = save_large, str(tmp_path), mode
        assert run_ranks(*args, world_size=1, group=False, env=env) == [None]
        assert not list(small.iterdir())
    assert state("logs") == undisturbed(4, mode)


@pytest.mark.parametrize("mode", MODES)
def test_directories_behind_links(mode: str | None) -> None:
    """A log directory that is a symbolic link is as good, and can be moved."""
    Path("disk/real").mkdir(parents=True)
    Path("logs").symlink_to("disk/real")
    run_epochs("logs", 4, mode=mode)
    run_epochs("logs", 6, mode=mode)
    assert Path("logs").is_symlink()
    assert state("logs") == state("disk/real") == undisturbed(6, mode)
    Path("disk/real").rename("moved")
    run_epochs("moved", 7, mode=mode)
    assert state("moved") == undisturbed(7, mode)


def test_a_save_in_a_signal_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it interrupts another save, it raises at once, and later saves work."""
    checkpoint = make_checkpoint("train", 1, nn.Linear(2, 1))
    checkpoints = CheckpointManager("run")
    checkpoints.save_last(checkpoint)
    synchronise, errors = os.fsync, []

    def interrupted(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", synchronise)
        signal.raise_signal(signal.SIGUSR2)
        synchronise(descriptor)

    def handle(*_: object) -> None:
        try:
            checkpoints.save_last(checkpoint)
        except RuntimeError as error:
            errors.append(str(error))

    monkeypatch.setattr(os, "fsync", interrupted)
    before = signal.signal(signal.SIGUSR2, handle)
    try:
        checkpoints.process(0.5, 1, checkpoint)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert len(errors) == 1
    assert errors[0].startswith("a save into run is under way in this thread")
    assert [row["loss"] for row in checkpoints.history] == [0.5]
    checkpoints.process(0.25, 2, {**checkpoint, "epoch": 2})
    assert torch.load("run/best.pth")["epoch"] == 2
