from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from ranks import run_ranks

from batteries.files import link_or_copy, make_directory, write_whole


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


def test_link_replaces() -> None:
    """The target becomes the same file; linking again what is linked leaves nothing behind."""
    Path("new").write_bytes(b"new")
    Path("best").write_bytes(b"old")
    for _ in range(2):
        link_or_copy("new", "best")
        assert Path("best").samefile("new")
        assert names() == ["best", "new"]


def test_copy_where_links_are_impossible(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without hard links the data is copied, and that is said once."""

    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted", str(source), None, str(target))

    monkeypatch.setattr(os, "link", refuse)
    Path("new").write_bytes(b"new")
    with pytest.warns(UserWarning, match=r"no hard links in .* \(Operation not permitted\)"):
        link_or_copy("new", "best")
    link_or_copy("new", "best")
    assert Path("best").read_bytes() == b"new"
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
