"""Names of a run's files. They are made only of numbers, never of other input."""

from __future__ import annotations

import re

LOG = "log.txt"
CHECKPOINTS = "checkpoints"
RESUMED = "BATTERIES_RESUME"  # the environment variable that names the run to resume


def checkpoint_name(epoch: int, suffix: str) -> str:
    return f"exp_{epoch}{suffix}"


def epoch_of(name: str) -> int | None:
    """The epoch in the name of a checkpoint; None for other names."""
    found = re.fullmatch(r"exp_(0|-?[1-9][0-9]{0,17})\.(pth|dcp)", name)
    return int(found[1]) if found else None


def diff_name(session: int) -> str:
    """The name of the file with the changes since the commit, in a session of a run (1, 2, ...)."""
    return f"diff-{session}.patch"


def is_diff(name: str) -> bool:
    return re.fullmatch(r"diff-\d{1,9}\.patch", name, re.ASCII) is not None
