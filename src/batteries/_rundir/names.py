"""Names of files that a run makes of numbers, and of nothing else."""

from __future__ import annotations

import re

LOG = "log.txt"
CHECKPOINTS = "checkpoints"
RESUMED = "BATTERIES_RESUME"  # the variable that names the run which a program goes on with


def checkpoint_name(epoch: int, suffix: str) -> str:
    """Of the checkpoint of an epoch, ".pth" or ".dcp"."""
    return f"exp_{epoch}{suffix}"


def epoch_of(name: str) -> int | None:
    """The epoch in such a name; None for all that others may have put beside it."""
    found = re.fullmatch(r"exp_(0|-?[1-9][0-9]{0,17})\.(pth|dcp)", name)
    return int(found[1]) if found else None


def diff_name(session: int) -> str:
    """Of what was changed after the commit, in the first, second ... session of a run."""
    return f"diff-{session}.patch"


def is_diff(name: str) -> bool:
    return re.fullmatch(r"diff-\d{1,9}\.patch", name, re.ASCII) is not None
