"""Kill a process anywhere in a save: nothing is lost, and the next start makes it good."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import failing, run_with_faults
from ranks import DEADLINE, run_ranks
from sweeps import sweep
from torch import nn
from warm import context, start

from batteries import (
    CheckpointError,
    CheckpointManager,
    distributed,
    make_checkpoint,
    start_run,
)
from batteries._files import locked_directory, make_directory
from batteries._rundir import record as run_record
from batteries.checkpoint import read_checkpoint
from batteries.distributed._groups import notes
from batteries.distributed._waiting import wait_until

# Epoch 4 is a new best and drops epoch 1; epoch 5 is kept by `keep_every` alone; epoch 6 is
# neither; epoch 7 has no score.
SCORES = [0.3, 0.5, 0.4, 0.9, 0.1, 0.2, float("nan"), 0.6]


def manager(logdir: str | Path, mode: str | None = None) -> CheckpointManager:
    options: dict[str, Any] = {"metric_minimization": False, "save_n_best": 2, "keep_every": 5}
    modes = {mode: True} if mode else {}
    return CheckpointManager(logdir, "accuracy", **options, **modes)


def run_epochs(logdir: str | Path, until: int, numbers: int = 1, mode: str | None = None) -> None:
    """What a training program does: go on after the last checkpoint."""
    warnings.filterwarnings("ignore", "checkpoints are made faster")
    with manager(logdir, mode) as checkpoints:
        path = checkpoints.last_path
        last = read_checkpoint(path)["epoch"] if path.exists() else 0
        for epoch in range(last + 1, until + 1):
            process_epoch(checkpoints, epoch, numbers)


def process_epoch(checkpoints: CheckpointManager, epoch: int, numbers: int = 1) -> None:
    model = nn.Linear(numbers, 1, bias=False, device="meta").requires_grad_(False)
    model.to_empty(device="cpu").weight.fill_(epoch)
    checkpoint = make_checkpoint("train", epoch, model)
    checkpoints.process(SCORES[(epoch - 1) % len(SCORES)], epoch, checkpoint)
    model.weight.fill_(-1)  # in place, as an optimizer does


def state(logdir: str | Path) -> dict[str, Any]:
    """The files of a directory, each verified, with the epoch that it has."""
    found: dict[str, Any] = {}
    for path in sorted(Path(logdir).iterdir()):
        if path.name == "shards":  # those that have a name, and no others
            assert {link.resolve() for link in Path(logdir).glob("*.dcp")} == {
                *path.resolve().iterdir()
            }
        elif path.suffix in (".pth", ".dcp"):
            checkpoint = read_checkpoint(path)
            assert checkpoint["model_state_dict"]["weight"].eq(checkpoint["epoch"]).all()
            found[path.name] = checkpoint["epoch"]
        else:
            found[path.name] = json.loads(path.read_text())
    return found


CHANGES = ["os.rename", "os.link", "os.symlink", "os.remove", "os.mkdir", "os.rmdir"]


def changes_files(event: str, arguments: tuple[Any, ...]) -> bool:
    return event in CHANGES or (event == "open" and arguments[2] & os.O_ACCMODE != os.O_RDONLY)


def die_at(event_number: int, function: Callable[..., None], *args: Any) -> None:
    """Kill this process just before its n-th call that changes a directory or opens a file."""
    seen = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if changes_files(event, arguments):
            seen += 1
            if seen == event_number:
                os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    sys.addaudithook(count)
    function(*args)


def end_of(process: BaseProcess) -> int | None:
    process.join(DEADLINE)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode


def undisturbed(until: int, mode: str | None = None) -> dict[str, Any]:
    path = Path(f"undisturbed-{until}")
    if not path.exists():
        run_epochs(path, until, mode=mode)
    return state(path)


def copy_files(source: Path, target: str | Path) -> None:
    """With their links, of both kinds."""
    subprocess.run(["cp", "-a", f"{source}/.", target], check=True)


def die_everywhere(
    epoch: int,
    mode: str | None,
    place: Callable[[int], str | Path] = "event-{}".format,
    run: Callable[..., None] = run_epochs,
    step: int = 1,
) -> int:
    """Kill a save at each of its calls, or some, heal, go on; return how many there were."""
    suffix = ".dcp" if mode == "sharded" else ".pth"
    before = Path("before").absolute()
    run(before, epoch - 1, mode=mode)
    for event in itertools.count(1, step):
        logdir = place(event)
        if before.exists():
            copy_files(before, logdir)
        survived = end_of(start(die_at, event, run, logdir, epoch, 1, mode)) == 0
        if Path(logdir, f"last{suffix}").exists():
            assert read_checkpoint(Path(logdir, f"last{suffix}"))["epoch"] in (epoch - 1, epoch)
        if epoch > 1:
            assert read_checkpoint(Path(logdir, f"best{suffix}"))["epoch"] in (2, 4)
        run(logdir, epoch, mode=mode)  # what the next start does: heal, run what is missing
        assert state(logdir) == undisturbed(epoch, mode)
        run(logdir, epoch + 1, mode=mode)
        assert state(logdir) == undisturbed(epoch + 1, mode)
        if survived:
            return event - 1
    raise AssertionError


@pytest.mark.parametrize(
    ("epoch", "mode"),
    [(1, None), (4, None), (4, "background"), (4, "sharded"), sweep(6, None)],
)
def test_death_at_every_step(epoch: int, mode: str | None) -> None:
    """Killed at any call of a save, the directory has the old or the new state, and then heals."""
    step = 4 if mode == "sharded" else 1  # of 29 calls; `make stress PART=calls` takes them all
    assert die_everywhere(epoch, mode, step=step) >= 5


def behind_a_link(event: int) -> Path:
    Path(f"real-{event}").mkdir()
    Path(f"link-{event}").symlink_to(f"real-{event}")
    return Path(f"link-{event}")


@pytest.mark.sweep
def test_death_behind_a_link() -> None:
    """A log directory that is a symbolic link survives the same, and stays one."""
    die_behind_links(None)


def die_behind_links(mode: str | None) -> None:
    events = die_everywhere(4, mode, behind_a_link)
    assert all(Path(f"link-{event}").is_symlink() for event in range(1, events + 1))


def run_without_links(logdir: Path, until: int, numbers: int = 1, mode: str | None = None) -> None:
    with failing(logdir, -1, errno.EPERM, "link"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "there are no hard links")
        run_epochs(logdir, until, numbers, mode)


def die_without_links(directory: str, mode: str | None) -> tuple[int, int]:
    os.chdir(directory)

    def place(event: int) -> Path:
        return Path(f"event-{event}").absolute()

    events = die_everywhere(4, mode, place, run_without_links)
    return events, Path("event-1/last.pth").stat().st_nlink


def die_where_links_are_refused(mode: str | None) -> None:
    """Where the system refuses links, copies survive a death at every call too."""
    events, links = run_with_faults(die_without_links, str(Path.cwd()), mode)
    assert events >= 5
    assert links == 1


def interrupt_everywhere(directory: str, mode: str | None) -> int:
    os.chdir(directory)
    seen = at = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if at and changes_files(event, arguments):
            seen += 1
            if seen == at:
                os.kill(os.getpid(), signal.SIGINT)

    sys.addaudithook(count)
    for number in itertools.count(1):
        logdir = Path(f"interrupted-{number}")
        run_epochs(logdir, 3)
        with manager(logdir, mode) as checkpoints:
            seen, at, interrupted = 0, number, True
            with suppress(KeyboardInterrupt):
                process_epoch(checkpoints, 4)
                checkpoints.wait()
                interrupted = False
            at = 0
            checkpoints.wait()
            assert not list(logdir.glob(".*"))
            assert read_checkpoint(logdir / "last.pth")["epoch"] in (3, 4)
            assert read_checkpoint(logdir / "best.pth")["epoch"] in (2, 4)
            process_epoch(checkpoints, 4)
            checkpoints.wait()
            assert state(logdir) == undisturbed(4)
        if not interrupted:
            return number - 1
    raise AssertionError


@pytest.mark.parametrize("mode", [None, "background"])
def test_interrupts_at_every_step(tmp_path: Path, mode: str | None) -> None:
    """Ctrl-C at any call of a save leaves nothing behind, and the same manager goes on."""
    [number] = run_ranks(interrupt_everywhere, str(tmp_path), mode, world_size=1, group=False)
    assert number >= 8


def recover(logdir: str) -> None:
    manager(logdir)


@pytest.mark.parametrize("event", [sweep(2), 4, sweep(6), 8])
def test_death_while_healing(event: int) -> None:
    """Killed while it makes good what another death left, a start loses nothing either."""
    second, healed, before = 0, False, Path("before")
    run_epochs(before, 3)
    assert end_of(start(die_at, event, run_epochs, before, 4)) == -signal.SIGKILL
    while not healed:
        second += 1
        logdir = f"second-{second}"
        copy_files(before, logdir)
        healed = end_of(start(die_at, second, recover, logdir)) == 0
        run_epochs(logdir, 4)
        assert state(logdir) == undisturbed(4)


def test_random_kills_of_large_saves() -> None:
    """SIGKILLs at random moments of saves of 50 MB, in both modes: all heals."""
    kill_large_saves(4, random.Random(0))


def kill_large_saves(most: int, chance: random.Random) -> str:
    numbers = 50_000_000 // 4
    begun = time.monotonic()
    run_epochs("timing", 2, numbers)
    seconds = (time.monotonic() - begun) / 2
    logdir = Path("logs")
    kills = 0
    while kills < most:
        process = start(run_epochs, logdir, len(SCORES), numbers, [None, "background"][kills % 2])
        process.join(chance.uniform(0, 3 * seconds + 0.2))  # a moment that nobody chose
        process.kill()
        kills += end_of(process) == -signal.SIGKILL
        names = {path.name for path in logdir.iterdir()} if logdir.exists() else set()
        if "last.pth" in names:
            assert read_checkpoint(logdir / "last.pth")["epoch"] >= 1
        if "best.pth" in names:
            read_checkpoint(logdir / "best.pth")
        done = "last.pth" in names and read_checkpoint(logdir / "last.pth")["epoch"] == len(SCORES)
        if done:  # begin anew, beside it
            run_epochs(logdir, len(SCORES), numbers)
            assert state(logdir) == undisturbed(len(SCORES))
            logdir = Path(f"logs-{kills}")
    return f"{kills} saves of 50 MB killed, nothing lost"


# ---------------------------------------------------------------- two writers


def test_the_newer_run_owns() -> None:
    """Once a new run has saved, the old one's saves are refused, and nothing is mixed."""
    old = manager("logs")
    process_epoch(old, 1)
    new = manager("logs")
    process_epoch(old, 2)  # a new manager that only looks changes nothing
    process_epoch(new, 3)
    assert [row["epoch"] for row in new.history] == [1, 2, 3]
    before = {path: path.read_bytes() for path in Path("logs").iterdir()}
    for save in (partial(process_epoch, old, 3), partial(old.save_last, {"a": 1})):
        with pytest.raises(CheckpointError, match=r"logs belongs to a newer run by now \(process"):
            save()
    assert {path: path.read_bytes() for path in Path("logs").iterdir()} == before


def hold_and_wait(logdir: str, pipe: Any) -> None:
    checkpoints = manager(logdir)
    process_epoch(checkpoints, 1)
    pipe.send("saved")
    pipe.recv()
    try:
        process_epoch(checkpoints, 2)
    except CheckpointError as error:
        pipe.send(str(error))


def test_a_running_writer_is_told_of() -> None:
    """Who takes over from a process that is still running is warned, and that one is refused."""
    ours, theirs = context.Pipe()
    process = start(hold_and_wait, "logs", theirs)
    assert ours.recv() == "saved"
    with pytest.warns(
        UserWarning, match=rf"takes over logs from process {process.pid}, which is still"
    ):
        process_epoch(manager("logs"), 2)
    ours.send("go on")
    assert "belongs to a newer run" in ours.recv()
    assert end_of(process) == 0


def race(logdir: str, mode: str | None, pipe: Any) -> None:
    warnings.simplefilter("ignore")
    with suppress(CheckpointError), manager(logdir, mode) as checkpoints:  # once more, at its end
        pipe.send("ready")
        pipe.recv()
        try:
            for epoch in range(1, 41):
                process_epoch(checkpoints, epoch)
            checkpoints.wait()
        except CheckpointError as error:
            pipe.send(str(error))
        else:
            pipe.send("finished")


@pytest.mark.parametrize("mode", [None, "background"])
def test_two_writers_race(mode: str | None) -> None:
    """Of two runs that save at once one is refused, and the directory is the other's alone."""
    pipes = [context.Pipe() for _ in range(2)]
    processes = [start(race, "logs", mode, theirs) for _, theirs in pipes]
    assert [ours.recv() for ours, _ in pipes] == ["ready", "ready"]
    for ours, _ in pipes:
        ours.send("go")
    finished, refused = sorted((ours.recv() for ours, _ in pipes), key=len)
    assert [end_of(process) for process in processes] == [0, 0]
    assert finished == "finished"
    assert "logs belongs to a newer run by now (process" in refused
    assert state("logs") == undisturbed(40, mode)


def test_taking_over_in_the_middle_of_a_save() -> None:
    """Who takes over while another's save is half done forgets none of its scores."""
    run_epochs("logs", 3)
    checkpoints, before = manager("logs"), Path("logs/metrics.json").read_bytes()
    run_epochs("logs", 4)  # by the other,
    Path("logs/metrics.json").write_bytes(before)  # which has not come to this
    process_epoch(checkpoints, 5)
    assert [row["epoch"] for row in checkpoints.history] == [1, 2, 3, 4, 5]


@contextmanager
def held(logdir: Path, seconds: float) -> Iterator[None]:
    """Hold a directory against other processes for a time."""
    with ExitStack() as holding:
        holding.enter_context(locked_directory(logdir))
        release = threading.Timer(seconds, holding.close)
        release.start()
        yield
        release.join()


def slow_save(directory: str, mode: str | None) -> tuple[bool, bool]:
    logdir = make_directory(Path(directory, "logs"))
    seconds = 3
    with distributed.setup(timeout=timedelta(seconds=seconds)):
        with ExitStack() as slow:
            checkpoints = manager(logdir, mode)
            distributed.barrier()
            if distributed.rank() == 1:  # rank 0 has to wait
                slow.enter_context(held(logdir, seconds + 3))
            distributed.barrier()
            begun = time.monotonic()
            process_epoch(checkpoints, 1)
            while distributed.broadcast(time.monotonic() < begun + seconds + 1):
                pass  # training goes on
            early = checkpoints.last_path.exists()
        checkpoints.close()
        distributed.barrier()
        return early, checkpoints.last_path.exists()


@pytest.mark.parametrize(("mode", "early"), [(None, True), ("background", False)])
def test_saves_longer_than_the_timeout(mode: str | None, early: bool, tmp_path: Path) -> None:
    """A save that takes longer than the group's timeout stops no other rank."""
    results = run_ranks(slow_save, str(tmp_path), mode, group=False)
    assert results == [(early, True)] * 2


# ---------------------------------------------------------------- the rest of the promises


def test_keep_all() -> None:
    """`save_n_best=None` keeps every epoch."""
    checkpoints = CheckpointManager("logs", save_n_best=None)
    for epoch in range(1, 6):
        checkpoints.process(float("nan"), epoch, make_checkpoint("train", epoch, nn.Linear(1, 1)))
    assert len(list(Path("logs").glob("exp_*.pth"))) == 5


def test_save_last() -> None:
    """`save_last` replaces the last checkpoint alone, and the next epoch goes on from there."""
    checkpoints = manager("logs")
    process_epoch(checkpoints, 1)
    checkpoints.save_last(make_checkpoint("middle", 2, nn.Linear(1, 1)))
    assert read_checkpoint("logs/last.pth")["stage"] == "middle"
    assert read_checkpoint("logs/best.pth")["stage"] == "train"
    process_epoch(manager("logs"), 2)
    assert [row["epoch"] for row in manager("logs").history] == [1, 2]


def test_best_of_what_is_left() -> None:
    """Coming back to an epoch makes the best of the remaining ones best again."""
    checkpoints = manager("logs")
    for epoch in range(1, 5):
        process_epoch(checkpoints, epoch)
    assert read_checkpoint("logs/best.pth")["epoch"] == 4
    process_epoch(checkpoints, 3)
    assert read_checkpoint("logs/best.pth")["epoch"] == 2
    assert checkpoints.best_score == 0.5


def test_looking_changes_nothing() -> None:
    """A manager that is made to look, with other settings, removes and rewrites nothing."""
    run_epochs("logs", 5)
    before = {path: (path.read_bytes(), path.stat()) for path in Path("logs").iterdir()}
    looking = CheckpointManager("logs", "accuracy", metric_minimization=False, save_n_best=0)
    assert looking.best_score == 0.9
    assert {path: (path.read_bytes(), path.stat()) for path in Path("logs").iterdir()} == before


@pytest.mark.parametrize("bad", [{"save_n_best": -1}, {"keep_every": 0}])
def test_bad_numbers(bad: dict[str, int]) -> None:
    """Numbers that make no sense are refused."""
    with pytest.raises(ValueError, match=f"{next(iter(bad))} is .*; expected"):
        CheckpointManager("logs", **bad)  # type: ignore[arg-type]


def test_lost_memory() -> None:
    """Without metrics.json the history comes from the files, and none of them is removed."""
    run_epochs("logs", 4)
    Path("logs/metrics.json").unlink()
    assert manager("logs").history == [{"accuracy": 0.5, "epoch": 2}, {"accuracy": 0.9, "epoch": 4}]
    run_epochs("logs", 6)
    assert {"exp_2.pth", "exp_4.pth", "exp_5.pth"} <= {path.name for path in Path("logs").iterdir()}


def test_foreign_files_stay() -> None:
    """Files that the manager did not write are not removed, whatever they are called."""
    Path("logs").mkdir()
    torch.save({}, "logs/exp_7.pth")
    Path("logs/exp_notes.pth").write_text("mine")
    run_epochs("logs", 6)
    assert Path("logs/exp_7.pth").exists()
    assert Path("logs/exp_notes.pth").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"loss": 1}'])
def test_foreign_memory(text: str) -> None:
    """A metrics.json that is not the manager's is named, and left alone."""
    Path("logs").mkdir()
    Path("logs/metrics.json").write_text(text)
    with pytest.raises(ValueError, match=r"logs/metrics\.json was not written by a Checkpoint"):
        manager("logs")
    assert Path("logs/metrics.json").read_text() == text


def test_a_score_called_epoch() -> None:
    """A score that is called `epoch` does not take the epoch's place."""
    checkpoints = CheckpointManager("logs")
    for epoch in (1, 2):
        checkpoint = make_checkpoint("train", epoch, nn.Linear(1, 1))
        checkpoints.process({"loss": 0.5, "epoch": 7.0}, epoch, checkpoint)
    assert [row["epoch"] for row in checkpoints.history] == [1, 2]


@pytest.mark.parametrize("bad", [None, "high", [0.5], torch.zeros(2), {"nested": 1}])
def test_scores_that_are_not_numbers(bad: Any) -> None:
    """A score that is not one number is named."""
    checkpoints = CheckpointManager("logs", metric="loss", metric_minimization=True)
    with pytest.raises(TypeError, match=r"the score 'loss' is .*; expected one number"):
        checkpoints.process({"loss": bad}, 1, {})


def best_scores(directory: str) -> tuple[float | None, int, list[str]]:
    checkpoints = manager(directory)
    process_epoch(checkpoints, 1)
    process_epoch(checkpoints, 2)
    os.chdir(Path(directory, str(distributed.rank())))
    elsewhere, run_record.SEEN = manager("logs"), 0.2
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        process_epoch(elsewhere, 1)
        process_epoch(elsewhere, 2)
        assert Path("logs").exists() == distributed.is_main()
        start_run("runs").close()
    texts = [str(warning.message) for warning in told]
    return checkpoints.best_score, len(checkpoints.history), texts


def test_ranks_agree_on_the_best(tmp_path: Path) -> None:
    """Every rank that calls `process` knows the same scores, and where rank 0 alone writes."""
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
    first, second = run_ranks(best_scores, str(tmp_path))
    assert first == (0.5, 2, [])
    assert second[:2] == (0.5, 2)
    assert [text.partition(" has written to ")[2].partition(":")[0] for text in second[2]] == [
        "logs",
        "runs/001",
    ]
    assert all("rank 1 on " in text and "rank 0 on " in text for text in second[2])


def scores_after_a_kill(directory: str) -> list[dict[str, Any]]:
    early = None if distributed.is_main() else manager(directory)
    distributed.barrier()
    checkpoints = early or manager(directory)
    process_epoch(checkpoints, 3)
    return checkpoints.history


def test_ranks_agree_on_the_scores_after_a_kill(tmp_path: Path) -> None:
    """The scores of a save that was killed after its commit are known to every rank."""
    checkpoints = manager(tmp_path)
    process_epoch(checkpoints, 1)
    before = checkpoints.logdir.joinpath("metrics.json").read_text()
    process_epoch(checkpoints, 2)
    checkpoints.logdir.joinpath("metrics.json").write_text(before)
    first, second = run_ranks(scores_after_a_kill, str(tmp_path))
    assert [row["epoch"] for row in first] == [1, 2, 3]
    assert second == first


def save_after_a_save_of_rank_zero(directory: str) -> bool:
    checkpoints = manager(directory)
    if distributed.is_main():  # in the middle of an epoch
        checkpoints.save_last(make_checkpoint("train", 1, nn.Linear(1, 1)))
        wait_until(lambda: notes().check(["too early"]), 0.5)
    process_epoch(checkpoints, 1)
    notes().set("too early", "")
    return checkpoints.best_path.exists()


def test_ranks_wait_for_the_save_that_they_call(tmp_path: Path) -> None:
    """After `process` the checkpoint is there, also if rank 0 has saved more often than others."""
    assert run_ranks(save_after_a_save_of_rank_zero, str(tmp_path)) == [True, True]


def save_with_own_scores(directory: str, mode: str | None) -> tuple[float | None, list[Any]]:
    checkpoints = manager(directory, mode)
    for epoch in (1, 2):
        score = epoch / 10 if distributed.is_main() else 1 / epoch
        checkpoint = make_checkpoint("train", epoch, nn.Linear(1, 1))
        checkpoints.process(score, epoch, checkpoint)
    return checkpoints.best_score, checkpoints.history


@pytest.mark.parametrize("mode", [None, "sharded"])
def test_the_scores_of_rank_zero_count(mode: str | None, tmp_path: Path) -> None:
    """Every rank has the scores of rank 0, also if the program gives each rank another score."""
    expected = 0.2, [{"epoch": 1, "accuracy": 0.1}, {"epoch": 2, "accuracy": 0.2}]
    assert run_ranks(save_with_own_scores, str(tmp_path), mode) == [expected, expected]
