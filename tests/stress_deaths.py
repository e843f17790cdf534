"""End saves at random moments: what was acknowledged is there, the next start heals the rest."""

from __future__ import annotations

import functools
import itertools
import random
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from mounts import cut_power, make_image, mounted
from ranks import DEADLINE
from test_checkpoint_crashes import (
    die_at,
    die_behind_links,
    die_everywhere,
    die_where_links_are_refused,
    end_of,
    manager,
    process_epoch,
    state,
)
from warm import context, start

from batteries import CheckpointError
from batteries.checkpoint import read_checkpoint

NUMBERS = 250_000  # of the model: a file of 1 MB
LAST = 10  # epoch of a run; then another one begins
MODES = [None, "background", "sharded"]
# Epochs and modes that test_checkpoint_crashes leaves out.
KINDS = [(1, "background"), (6, "background"), (1, "sharded"), (6, "sharded")]


def train(logdir: Path, mode: str | None, acknowledge: Connection) -> None:
    """Save epoch after epoch until death, and say of which it is known that they are there."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "checkpoints are made faster")
    with manager(logdir, mode) as checkpoints:
        path = checkpoints.last_path
        last = read_checkpoint(path)["epoch"] if path.exists() else 0
        acknowledge.send(last)
        for epoch in range(last + 1, LAST + 1):
            process_epoch(checkpoints, epoch, NUMBERS)
            if mode != "background" or epoch % 3 == 0:
                checkpoints.wait()
                acknowledge.send(epoch)


def train_until_cut(logdir: Path, mode: str | None, acknowledge: Connection) -> None:
    try:
        train(logdir, mode, acknowledge)
    except (OSError, CheckpointError) as error:
        if str(logdir) not in str(error):
            raise


def end_somewhere(
    training: Callable[..., None],
    logdir: Path,
    mode: str | None,
    chance: random.Random,
    end: Callable[[BaseProcess], None],
) -> tuple[int, bool]:
    """Let a training end at a random moment; the last acknowledged epoch, and if it was killed."""
    ours, theirs = context.Pipe(duplex=False)
    process = start(training, logdir, mode, theirs)
    theirs.close()
    acknowledged, seconds = 0, 0.05
    with suppress(EOFError):  # the training is over
        for _ in range(chance.randint(0, 2)):
            begun = time.monotonic()
            assert ours.poll(DEADLINE), "the training hangs"
            acknowledged = ours.recv()
            seconds = max(time.monotonic() - begun, 0.005)
    process.join(chance.uniform(0, 1.5 * seconds))  # a moment that nobody chose
    end(process)
    code = end_of(process)
    assert code in (0, -signal.SIGKILL)
    with suppress(EOFError):
        while True:
            acknowledged = ours.recv()
    return acknowledged, code != 0


def every_call(number: int, _: random.Random) -> str:
    """Killed at each call of a save: in so many of the kinds of saves."""
    calls = [die_everywhere(epoch, mode) for epoch, mode in KINDS[:number]]
    if number > len(KINDS):
        die_behind_links("sharded")
        for mode in (None, "background"):
            die_where_links_are_refused(mode)
    return f"{sum(calls)} calls, in {len(calls)} kinds of saves"


@functools.cache
def undisturbed(mode: str | None) -> list[dict[str, Any]]:
    """What is in a directory after each epoch, from none on."""
    states: list[dict[str, Any]] = [{}]
    with manager(f"undisturbed-{mode}", mode) as checkpoints:
        for epoch in range(1, LAST + 1):
            process_epoch(checkpoints, epoch)
            checkpoints.wait()
            states.append(state(checkpoints.logdir))
    return states


def found(logdir: Path) -> dict[str, Any]:
    return state(logdir) if logdir.exists() else {}


def at_rest(logdir: Path, mode: str | None, epoch: int) -> bool:
    """Whether a death came between two saves."""
    try:
        return found(logdir) == undisturbed(mode)[epoch]
    except (AssertionError, OSError, ValueError):  # unnamed shards, temporary files
        return False


def check(logdir: Path, mode: str | None, acknowledged: int) -> int:
    """Hold what is there before anything is healed against what has to be there."""
    suffix = ".dcp" if mode == "sharded" else ".pth"
    last, best = logdir / f"last{suffix}", logdir / f"best{suffix}"
    epoch: int = read_checkpoint(last)["epoch"] if last.exists() else 0
    assert epoch >= acknowledged, f"epoch {acknowledged} was acknowledged, {epoch} is there"
    if best.exists() or epoch > 1:
        either = {undisturbed(mode)[e].get(best.name) for e in (max(epoch - 1, 1), epoch)}
        assert read_checkpoint(best)["epoch"] in either
    return epoch


def heal(logdir: Path, mode: str | None) -> None:
    manager(logdir, mode).close()


def kills(number: int, chance: random.Random) -> str:
    """SIGKILL at random moments, in all modes, and again in the start that heals."""
    killed = half_done = second = 0
    modes = itertools.cycle(MODES)
    while killed < number:
        mode = next(modes)
        logdir = Path(f"logs-{mode}")
        acknowledged, was_killed = end_somewhere(train, logdir, mode, chance, BaseProcess.kill)
        killed += was_killed
        epoch = check(logdir, mode, acknowledged)
        if not at_rest(logdir, mode, epoch):
            half_done += 1
            again = start(die_at, chance.randint(1, 6), heal, logdir, mode)
            second += end_of(again) == -signal.SIGKILL
            assert check(logdir, mode, acknowledged) == epoch
        heal(logdir, mode)
        assert found(logdir) == undisturbed(mode)[epoch]
        if epoch == LAST:
            shutil.rmtree(logdir)
    return f"{half_done} left a half-done save, {second} more kills while it was healed, 0 losses"


def power_cuts(kind: str, number: int, chance: random.Random) -> str:
    """Cut a file system off from its disk while a training saves; mount it again, and look."""
    half_done = 0
    with tempfile.TemporaryDirectory() as folder:
        image, place = make_image(Path(folder, "image"), kind), Path(folder, "disk")

        def cut(_: BaseProcess) -> None:
            cut_power(place)

        mount = functools.partial(mounted, place, "-o", "loop", str(image))
        for n in range(number):
            mode = MODES[n % len(MODES)]
            logdir = place / f"logs-{mode}"
            with mount():
                acknowledged, _ = end_somewhere(train_until_cut, logdir, mode, chance, cut)
            with mount():
                epoch = check(logdir, mode, acknowledged)
                half_done += not at_rest(logdir, mode, epoch)
                heal(logdir, mode)
                assert found(logdir) == undisturbed(mode)[epoch]
                if epoch == LAST:
                    shutil.rmtree(logdir)
    return f"{half_done} left a half-done save; every acknowledged save is there"
