"""Text logs on the console and in a file, written by rank 0."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from batteries import distributed
from batteries._files import PathLike, make_directory


def get_logger(
    name: str,
    log_file: PathLike | None = None,
    log_level: int | str = logging.INFO,
    disable: bool = False,
) -> logging.Logger:
    """Return a logger that writes `time - name - level - message` lines.

    >>> logger = get_logger("experiment", log_file="runs/digits/log.txt")
    >>> logger.info("epoch 1")

    Rank 0 writes all messages. The other ranks write only errors, with their rank in the line. A
    second call with the same name adds its file, and sets the level and `disable`. No line is
    written twice. New lines are appended to an existing file.

    Args:
        name: The name of the logger, which is in each line.
        log_file: A file to write in addition to the console (stderr). Its directory is created. The
            file may be a device or a pipe, such as /dev/stdout.
        log_level: The lowest level that is written, as in `logging`: a number, or "DEBUG".
        disable: Write nothing.

    Raises:
        NotADirectoryError: The directory of the file is a file.
        IsADirectoryError: The file is a directory.
        ValueError: `logging` does not know the level.
    """
    logger = logging.getLogger(name)
    logger.setLevel(log_level)
    logger.propagate = False  # the root's handlers would write the line again
    logger.disabled = disable
    if not any(isinstance(handler, _ConsoleHandler) for handler in logger.handlers):
        _add(logger, _ConsoleHandler())
    if log_file is None:
        return logger
    path = os.path.realpath(log_file)  # the same for all paths of one file
    if Path(log_file).is_dir():
        raise IsADirectoryError(
            f"{log_file} is a directory; expected a file in it, such as log.txt"
        )
    if not Path(path).exists() and Path(log_file).exists():
        path = os.path.abspath(log_file)  # the links of a pipe end in a name that is no path
    if not any(getattr(handler, "baseFilename", None) == path for handler in logger.handlers):
        make_directory(Path(path).parent)
        # With delay, a rank without errors does not open the file.
        _add(logger, logging.FileHandler(path, mode="a", encoding="utf-8", delay=True))
    return logger


def _add(logger: logging.Logger, handler: logging.Handler) -> None:
    line = "%(asctime)s - %(name)s - %(levelname)s - %(_rank)s%(message)s"
    handler.setFormatter(logging.Formatter(line))
    handler.addFilter(_from_rank)
    logger.addHandler(handler)


def _from_rank(record: logging.LogRecord) -> bool:
    # Called for every record, because the logger may be older than the process group.
    rank = distributed.rank()
    record._rank = f"[rank {rank}] " if rank else ""
    return record.levelno >= logging.ERROR or not rank


class _ConsoleHandler(logging.StreamHandler):  # type: ignore[type-arg]  # subscripts need 3.11
    """Writes to the current sys.stderr, above the progress bars and not into them."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # StreamHandler's own would keep the stream

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)
