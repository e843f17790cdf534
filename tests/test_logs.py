from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from ranks import run_ranks

from batteries import get_logger
from batteries.progress import tqdm


@pytest.fixture
def name() -> str:
    """Of a logger that no other test has: Python keeps them for ever."""
    return f"test-{uuid.uuid4().hex}"


def test_one_line_format(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A line is `time - name - level - message`, on the console and in the file."""
    get_logger(name, "log.txt").info("epoch %d", 1)
    line = Path("log.txt").read_text()
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d [\d:,]+ - {name} - INFO - epoch 1\n", line)
    assert capsys.readouterr().err == line


def test_never_twice(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """However often it is called, by whatever path, a line is written once."""
    logging.getLogger().addHandler(root := logging.StreamHandler(sys.stderr))
    paths: list[str | Path | None] = ["log.txt", Path("log.txt").absolute(), None, "./log.txt"]
    for path in paths:
        get_logger(name, path).info("message")
    logging.getLogger().removeHandler(root)
    assert len(Path("log.txt").read_text().splitlines()) == 4
    assert len(capsys.readouterr().err.splitlines()) == 4


def test_links_are_the_same_file(name: str) -> None:
    """A file that is reached through a linked directory is still one file."""
    Path("real").mkdir()
    Path("link").symlink_to("real")
    get_logger(name, "real/log.txt")
    get_logger(name, "link/log.txt").info("once")
    assert len(Path("real/log.txt").read_text().splitlines()) == 1


def test_appends(name: str) -> None:
    """A restarted program continues its log."""
    Path("log.txt").write_text("before\n")
    get_logger(name, "log.txt").info("after")
    assert Path("log.txt").read_text().startswith("before\n2")


def test_names_that_start_alike(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A logger whose name starts with another's, or is below it, has its own output."""
    get_logger(name, "a.txt")
    get_logger(f"{name}2", "b.txt").info("second")
    get_logger(f"{name}.child", "c.txt").info("third")
    assert Path("a.txt").exists() is False
    assert Path("b.txt").read_text().endswith("second\n")
    assert Path("c.txt").read_text().endswith("third\n")
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_level_and_disable(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The level decides what is written; a disabled logger writes nothing at all."""
    get_logger(name, log_level=logging.WARNING).info("no")
    get_logger(name, log_level=logging.DEBUG).debug("yes")
    get_logger(name, "log.txt", disable=True).error("no")
    assert capsys.readouterr().err.endswith("DEBUG - yes\n")
    assert not Path("log.txt").exists()


def log_everywhere(directory: str) -> tuple[str, str]:
    sys.stderr = io.StringIO()
    logger = get_logger("ranks", f"{directory}/deep/er/log.txt")
    logger.info("progress")
    logger.warning("careful")
    logger.error("trouble")
    return sys.stderr.getvalue(), "deep"


@pytest.mark.parametrize("group", [True, False])
def test_ranks(tmp_path: Path, group: bool) -> None:
    """Rank 0 writes everything; the others errors only, with their rank in the line."""
    consoles = [r[0] for r in run_ranks(log_everywhere, str(tmp_path), world_size=3, group=group)]
    lines = (tmp_path / "deep/er/log.txt").read_text().splitlines()
    assert [len(console.splitlines()) for console in consoles] == [3, 1, 1]
    assert len(lines) == 5
    assert sum("ERROR - [rank 2] trouble" in line for line in lines) == 1
    assert sum("ERROR - trouble" in line for line in lines) == 1


def test_directory_that_is_a_file(name: str) -> None:
    """A log directory that is a file is named."""
    Path("runs").touch()
    with pytest.raises(NotADirectoryError, match=r"runs is a file; choose another log directory"):
        get_logger(name, "runs/a/log.txt")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_go_above_the_bar(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line written while a bar is shown stands on a line of its own."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with tqdm(total=10, ncols=40) as bar:
        bar.update(5)
        get_logger(name).info("message")
        written = terminal.getvalue()
    before_line = written[: written.index("message")].rpartition("\r")[2]
    assert before_line.startswith("20")
    assert "|" not in before_line


def test_pipes_and_devices(name: str) -> None:
    """A log file may be a pipe, such as /dev/stdout of a program whose output is piped."""
    script = (
        "from batteries import get_logger\n"
        f"for _ in range(2): get_logger({name!r}, '/dev/stdout').info('message')"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert [line[-9:] for line in result.stdout.splitlines()] == ["O - message"[-9:]] * 2


def test_a_log_file_that_is_a_directory(name: str) -> None:
    """A directory is named at once, not at the first line."""
    with pytest.raises(IsADirectoryError, match=r"\. is a directory; expected a file in it"):
        get_logger(name, ".")
