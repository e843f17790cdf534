from __future__ import annotations

import errno
import multiprocessing
import os
import pty
import socket
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import failing, run_with_faults, trace
from ranks import run_ranks

from batteries import CheckpointManager, save_checkpoint
from batteries._files import (
    append_whole,
    link_or_copy,
    locked_directory,
    make_directory,
    point_to,
    remove_leftovers,
    write_whole,
)
from batteries.checkpoint import read_checkpoint


def names() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def test_error_while_writing() -> None:
    """An error in the middle leaves the old file as it was and nothing beside it."""
    Path("a").write_bytes(b"old")

    def write_half() -> None:
        with write_whole("a") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert Path("a").read_bytes() == b"old"
    assert names() == ["a"]


def test_visible_when_complete() -> None:
    """The new content appears in one step, after the last byte."""
    Path("a").write_bytes(b"old")
    with write_whole("a") as file:
        file.write(b"new")
        file.flush()
        assert Path("a").read_bytes() == b"old"
    assert Path("a").read_bytes() == b"new"


def test_permissions_are_the_users() -> None:
    """The file has the permissions that the user's umask gives, not those of a private file."""
    with write_whole("a"):
        pass
    Path("b").touch()
    assert Path("a").stat().st_mode == Path("b").stat().st_mode


def write(path: str | Path) -> None:
    with write_whole(path) as file:
        file.write(b"new")


def link(path: str | Path) -> None:
    Path("source").write_bytes(b"new")
    link_or_copy("source", path)


WRITERS: list[Callable[[str], None]] = [
    write,
    link,
    lambda path: append_whole(path, b"new"),
    lambda path: save_checkpoint({"model_state_dict": {}}, path),
]


@pytest.mark.parametrize("writer", WRITERS)
def test_links_are_followed(writer: Callable[[str], None]) -> None:
    """Of a symbolic link, also of one to nothing yet, the target is written, and the link stays."""
    Path("elsewhere").mkdir()
    Path("first").symlink_to("second")
    Path("second").symlink_to("elsewhere/file")
    for _ in range(2):
        writer("first")
        assert Path("first").is_symlink()
        assert Path("second").is_symlink()
        assert not Path("elsewhere/file").is_symlink()
        assert Path("elsewhere/file").stat().st_size >= 3
    assert [path.name for path in Path("elsewhere").iterdir()] == ["file"]


def test_error_behind_a_link() -> None:
    """An error in the middle leaves the target of a link as it was."""
    Path("real").write_bytes(b"old")
    Path("link").symlink_to("real")

    def write_half() -> None:
        with write_whole("link") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert (Path("real").read_bytes(), Path("link").is_symlink()) == (b"old", True)
    assert names() == ["link", "real"]


@pytest.mark.parametrize("writer", [*WRITERS, lambda path: point_to("x", path)])
def test_what_is_no_file(writer: Callable[[str], None]) -> None:
    """A directory, a device, a pipe, a socket is refused with its kind, also behind a link."""
    # a terminal's directory takes no files: a device that no fault here can replace
    terminal, end = pty.openpty()
    device = os.ttyname(end)
    kinds = {"device": device, "pipe": "pipe", "socket": "socket", "a directory is in": "dir"}
    os.mkfifo("pipe")
    Path("dir").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for kind, path in kinds.items():
            with pytest.raises(OSError, match=kind) as told:
                writer(path)
            assert "bytes are free" not in str(told.value)
            Path(f"link to {kind}").symlink_to(path)
        Path("circle").symlink_to("circle")
        if writer in WRITERS:
            for kind in [*kinds, "in a circle"]:
                with pytest.raises(OSError, match=kind):
                    writer("circle" if "circle" in kind else f"link to {kind}")
    os.close(end)
    os.close(terminal)
    assert Path("pipe").is_fifo()
    assert not [name for name in names() if name[0] == "."]


def test_no_directory() -> None:
    """A directory that is missing is named, with what to do."""
    with pytest.raises(FileNotFoundError, match="there is no directory a/b for c; make it first"):
        write("a/b/c")


def test_errors_without_a_previous_file() -> None:
    """The error of a new file names no previous one, and no bytes where space is not the cause."""
    Path("file").touch()
    with pytest.raises(NotADirectoryError, match="file/a cannot be written; no file was") as told:
        write("file/a")
    assert "bytes" not in str(told.value)
    with pytest.raises(OSError, match="No space left") as full, write_whole("a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "no file was written" in str(full.value)
    assert "about 0 bytes" not in str(full.value)


def test_the_longest_names() -> None:
    """A name as long as the file system allows can be written, linked and appended to."""
    longest = os.pathconf(".", "PC_NAME_MAX")
    for letter in ("n", "\N{SNOWMAN}"):  # of one byte, and of three
        name = letter * (longest // len(letter.encode()))
        for writer in WRITERS:
            writer(name)
    save_checkpoint({"model_state_dict": {}}, name)
    assert read_checkpoint(name) == {"model_state_dict": {}}


def test_leftovers() -> None:
    """Leftovers of the own names go; what others write, or have called alike, stays."""
    own = f".best.pth.{'0' * 32}.tmp"
    others = [f".mine.pth.{'0' * 32}.tmp", ".best.pth.tmp", ".vim.tmp", f"best.pth.{'0' * 32}.tmp"]
    for name in [own, *others]:
        Path(name).touch()
    remove_leftovers(".", {"best.pth"}.__contains__)
    assert names() == sorted(others)


def refuse_calls(calls: str, error: int) -> list[str]:
    """Save twice while a call is refused everywhere; the calls that were, and what was warned."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        logs = Path(folder, "logs")
        manager = CheckpointManager(logs)
        manager.process(0.5, 1, {"model_state_dict": {}})
        with failing(logs, -1 if calls == "link" else 0, error, calls):
            manager.process(0.4, 2, {"model_state_dict": {}})
        seen = trace()
        for number in range(1, len(seen) + 1 if calls == "fsync" else 0):
            raised: list[OSError] = []
            with failing(logs, number, error, calls):
                try:
                    manager.process(0.3, 3, {"model_state_dict": {}})
                except OSError as one:
                    raised.append(one)
                failed = [call for call in trace() if call[0] == "!"]
            assert bool(raised) == (failed not in ([], [f"!fsync {logs}"])), (failed, raised)
        assert read_checkpoint(logs / "best.pth") == {"model_state_dict": {}}
        return [*seen, *(str(warning.message) for warning in told)]


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EOPNOTSUPP])
def test_directories_that_cannot_be_synced(error: int) -> None:
    """Where directories cannot be synced a save counts; a file that cannot be is an error."""
    calls = run_with_faults(refuse_calls, "fsync", error)
    assert {call.rpartition("/")[2] for call in calls} >= {"logs"}
    assert any(".tmp" in call for call in calls)


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_links_that_are_refused(error: int) -> None:
    """Where hard links are refused, for whatever reason, copies stand in, and that is said once."""
    *calls, told = run_with_faults(refuse_calls, "link", error)
    assert {call[:5] for call in calls} == {"!link"}
    assert f"({os.strerror(error)}): files are copied" in told


def test_link_replaces() -> None:
    """The target becomes the same file; linking again what is linked leaves nothing behind."""
    Path("new").write_bytes(b"new")
    Path("best").write_bytes(b"old")
    for _ in range(2):
        link_or_copy("new", "best")
        assert Path("best").samefile("new")
        assert names() == ["best", "new"]


def make_many(directory: str) -> bool:
    return all(make_directory(Path(directory, str(i), "deep")).is_dir() for i in range(100))


def test_directories_made_by_many(tmp_path: Path) -> None:
    """Several processes may create the same directories at once."""
    assert run_ranks(make_many, str(tmp_path), world_size=3, group=False) == [True] * 3


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_directory_that_is_a_file(path: str) -> None:
    """A file in the way is named."""
    Path("file").touch()
    with pytest.raises(NotADirectoryError, match=rf"directory {path}: file is a file; choose"):
        make_directory(path)


def test_directory_that_is_a_broken_link() -> None:
    """A link to nothing is not called a file."""
    Path("link").symlink_to("nowhere")
    with pytest.raises(NotADirectoryError, match=r"link is a link to nowhere, which does not exi"):
        make_directory("link/below")


def test_a_fork_does_not_keep_the_lock() -> None:
    """After a save the directory is free, although a worker was forked meanwhile and lives on."""
    forking = multiprocessing.get_context("fork")
    over = forking.Event()
    worker = forking.Process(target=over.wait, daemon=True)
    with locked_directory("."):
        worker.start()
    with locked_directory(".", timeout=0):
        over.set()
    worker.join()
    assert worker.exitcode == 0
