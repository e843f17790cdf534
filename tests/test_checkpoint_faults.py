"""Let each call of a save fail: one error, nothing lost, nothing left over, training goes on."""

from __future__ import annotations

import errno
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
from faults import failing, run_with_faults, trace
from test_checkpoint_crashes import SCORES, manager, run_epochs, state
from torch import nn

from batteries import make_checkpoint
from batteries.checkpoint import read_checkpoint

ERRORS = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES]
FORGIVEN = ("flock", "fadvise")  # held without a lock, written without advice


def linked(source: Path, target: Path) -> Path:
    """The same directory at once: files are replaced, never changed."""
    target.mkdir()
    for path in source.iterdir():
        os.link(path, target / path.name)
    return target


def process_with(checkpoints: Any, epoch: int) -> None:
    model = nn.Linear(1, 1, bias=False).requires_grad_(False)
    model.weight.fill_(epoch)
    checkpoints.process(SCORES[epoch - 1], epoch, make_checkpoint("train", epoch, model))
    checkpoints.wait()


def problems_of(logdir: Path, epoch: int, number: int, error: int, mode: str | None) -> list[str]:
    """What is wrong after the n-th call of a save has failed; None when there is no such call."""
    found: list[str] = []
    checkpoints = manager(logdir, mode)
    raised: list[OSError] = []
    with failing(logdir, number, error), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            process_with(checkpoints, epoch)
        except OSError as one:
            raised.append(one)
        try:
            checkpoints.wait()
        except OSError as another:
            raised.append(another)
    calls = trace()
    failed = next(line for line in calls if line.startswith("!"))
    name, path = failed[1:].split(" ", 1)
    text = "; ".join(map(str, raised))

    def check(good: bool, what: str) -> None:
        if not good:
            found.append(f"{failed} ({os.strerror(error)}): {what}: {text}")

    # Closing what was only read, and making links, can fail without harm.
    harmless = name in (*FORGIVEN, "link", "close", "unlink", "mkdir", "opendir")
    check(len(raised) == 1 or (harmless and not raised), "one error")
    for problem in raised:
        check(problem.errno == error and str(logdir) in str(problem), "which says what and where")
        written = ".tmp" in path and name in ("open", "write", "fsync", "close", "rename")
        room = error in (errno.ENOSPC, errno.EIO)  # the others are about rights
        check(not written or ("bytes are free" in str(problem)) == room, "and how much is needed")
    check(name != "link" or [str(w.message)[:8] for w in told] == ["there ar"], "a word of copies")
    after = calls[calls.index(failed) :]
    if name == "fsync" and ".tmp" in path:
        check(not any(line.startswith("rename") for line in after), "a failed sync is no success")
    leftovers = list(logdir.glob(".*"))
    check(not leftovers or name == "unlink", f"{leftovers} left over")
    names = {path.name: path for path in logdir.glob("*.pth")} if logdir.exists() else {}
    epochs = {name: read_checkpoint(path)["epoch"] for name, path in names.items()}
    check(epochs.get("last.pth", 0) in (epoch - 1, epoch), f"the old or the new one: {epochs}")
    check(raised != [] or epochs.get("last.pth") == epoch, "an acknowledged save is there")
    check(len(checkpoints.history) in (epoch - 1, epoch), "a history of what there is")
    process_with(checkpoints, epoch)  # again, after the space was freed
    check(state(logdir) == state(Path(f"after-{epoch}")), f"the next save heals: {state(logdir)}")
    checkpoints.close()
    return found


def fail_everywhere(mode: str | None, epochs: list[int]) -> tuple[int, list[str]]:
    """How many calls of saves were made to fail, each with one error, and what was wrong then."""
    problems: list[str] = []
    tried = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for epoch in epochs:
            before, after = Path(f"before-{epoch}"), Path(f"after-{epoch}")
            run_epochs(before, epoch - 1)
            before.mkdir(exist_ok=True)
            run_epochs(after, epoch)
            whole = linked(before, Path(f"whole-{epoch}").absolute())
            checkpoints = manager(whole, mode)
            with failing(whole, 0, 0):
                process_with(checkpoints, epoch)
                calls = len(trace())
            checkpoints.close()
            for number in range(1, calls + 1):
                logdir = linked(before, Path(f"{epoch}-{number}").absolute())
                problems += problems_of(logdir, epoch, number, ERRORS[number % len(ERRORS)], mode)
                tried += 1
        os.chdir("/")
    return tried, problems


@pytest.mark.parametrize("mode", [None, "background"])
def test_every_call_of_a_save_fails(mode: str | None) -> None:
    """Whichever call of a save fails: one error, nothing lost, and the next save heals."""
    tried, problems = run_with_faults(fail_everywhere, mode, [1, 4])
    assert not problems, "\n".join(problems)
    assert tried > 60
