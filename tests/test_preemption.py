"""Signals end a run at a step, the same on all ranks, and never in a hang."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import warm
from ranks import run_ranks
from sweeps import sweep
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from batteries import (
    CheckpointManager,
    PreemptionGuard,
    _preemption,
    distributed,
    save_checkpoint,
    start_run,
)
from batteries._processes import seconds_lived
from batteries._rundir.record import read_record
from batteries.distributed._waiting import wait_until

DEADLINE = 60
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"}


def steps_until_stop(told: list[int], number: int, after: int, slow: float) -> tuple[int, int]:
    """Steps that need all ranks, with a signal to some of them; where this rank stopped."""
    rank = distributed.rank()
    with PreemptionGuard(patience=30) as guard:
        for step in range(1, 10**6):
            distributed.all_reduce(1)
            if slow and step == after + 1:
                time.sleep(slow)  # a long step, of a healthy rank
            if step == after and rank in told:
                os.kill(os.getpid(), number)
            if guard.stop():
                return step, guard.exit_code
    raise AssertionError("it never stopped")


@pytest.mark.parametrize(
    ("told", "number"),
    [sweep([0], signal.SIGTERM), ([1], signal.SIGUSR1), ([0, 1, 2], signal.SIGINT)],
)
def test_all_ranks_stop_at_the_same_step(told: list[int], number: int) -> None:
    """Whichever ranks get the signal, all stop after the same step."""
    for after in (1, 50):
        results = run_ranks(steps_until_stop, told, number, after, 0.0, world_size=3)
        assert len(set(results)) == 1
        assert results[0][0] >= after
        assert results[0][1] == 75


def test_long_steps_are_waited_for() -> None:
    """A rank in the middle of a long step is not taken for dead."""
    results = run_ranks(steps_until_stop, [0], signal.SIGTERM, 5, 3.0, world_size=2)
    assert len(set(results)) == 1


def test_alone() -> None:
    """One process stops at its next step, and its handlers are put back."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with PreemptionGuard() as guard:
        assert not guard.stop()
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + DEADLINE
        while not guard.requested and time.monotonic() < deadline:
            time.sleep(0.01)
        assert guard.stop()
        assert guard.stop()  # the loop may finish its window first
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert "preemption" not in [thread.name for thread in threading.enumerate()]


def test_the_second_signal() -> None:
    """A second signal, a moment after the first, leaves at once."""
    program = """
import os, signal, time
from batteries import PreemptionGuard
with PreemptionGuard():
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.5)
    time.sleep(100)
"""
    done = warm.run([sys.executable, "-c", program], timeout=DEADLINE)
    assert done.returncode == 75


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def lone_rank(program: str, *, others: str = "", agent: bool = True) -> tuple[int, float, str]:
    """Two ranks; rank 1 gets the signal `others`, then rank 0 SIGTERM: how and when it left."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = store.port if agent else free_port()
    launcher = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    launcher |= {"TORCHELASTIC_USE_AGENT_STORE": str(agent), **ENV}
    ranks = [
        warm.Popen(
            [sys.executable, "-c", PRELUDE + program],
            env={**launcher, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            assert rank.stdout
            assert next(warm.told_by(rank.stdout)) == "ready\n"
        told, other = ranks if agent else ranks[::-1]  # rank 0 has the store, without an agent
        other.send_signal(signal.Signals[others])
        told.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        _, errors = told.communicate(timeout=DEADLINE)
        return told.returncode, time.monotonic() - begun, errors
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


PRELUDE = """
import os, signal, sys, time
import torch
from pathlib import Path
from batteries import PreemptionGuard, distributed
def ready():
    distributed.barrier()
    print("ready", flush=True)
"""

HANG = """
with distributed.setup(), PreemptionGuard(patience=2) as guard:
    guard.stop()
    while guard._store is None:
        time.sleep(0.01)
    ready()
    distributed.all_reduce(1) if distributed.rank() == TOLD else time.sleep(600)
"""

STEPS = """
from batteries.distributed import _joining
_joining._LEAVE = 1.0  # seconds for the other rank to reach the end of the block
with distributed.setup(), PreemptionGuard(patience=2) as guard:
    ready()
    while not guard.stop():
        time.sleep(0.05)  # a step that needs nobody
    Path("saved").touch()
    sys.exit(guard.exit_code)
"""


@pytest.mark.parametrize("agent", [True, False], ids=["store of an agent", "store of the stopped"])
def test_stopped_peer(agent: bool) -> None:
    """A rank that hangs in a collective with a stopped one leaves in seconds when it is told."""
    program = HANG.replace("TOLD", "0" if agent else "1")
    code, taken, errors = lone_rank(program, others="SIGSTOP", agent=agent)
    assert code == PreemptionGuard.exit_code
    assert taken < 20  # alone on a machine 2 s; the group's timeout is 30 minutes
    assert "PreemptionGuard: not all ranks answered, and no step ended in 2 s" in errors


@pytest.mark.parametrize("others", ["SIGKILL", sweep("SIGSTOP")])
def test_boundary_without_the_peer(others: str) -> None:
    """A rank that comes to its boundary without the others saves, and leaves in seconds."""
    code, taken, _ = lone_rank(STEPS, others=others)
    assert Path("saved").exists()
    assert code == PreemptionGuard.exit_code
    assert taken < 20


def outlive_the_group() -> bool:
    with PreemptionGuard() as guard:
        with distributed.setup():
            assert wait_until(lambda: guard._store is not None, DEADLINE)
            distributed.barrier()
        for _ in range(2):  # it looks, and looks again
            guard._look.set()
            seen = wait_until(lambda: not guard._look.is_set(), 20)
    return seen


def test_a_guard_around_the_group() -> None:
    """A guard that was entered before `setup` listens on when the process group has ended."""
    assert run_ranks(outlive_the_group, group=False) == [True, True]


def test_signals_of_others() -> None:
    """Signals that others handle are not told to the loop, such as that of a worker's end."""
    handler = signal.signal(signal.SIGCHLD, lambda *_: None)
    with PreemptionGuard() as guard:
        for _ in range(3):
            subprocess.run(["true"], check=True)
        guard._poke()  # read after what came before
        assert not guard.stop()
    signal.signal(signal.SIGCHLD, handler)
    assert not guard.requested


def wait_long() -> None:
    time.sleep(600)


def test_children_end_when_they_are_told() -> None:
    """A forked child is ended by SIGTERM as ever, and the loop is not told."""
    with PreemptionGuard() as guard:
        child = multiprocessing.get_context("fork").Process(target=wait_long)
        child.start()
        child.terminate()
        child.join(DEADLINE)
        assert child.exitcode == -signal.SIGTERM
    assert not guard.requested


SAVE = """
with PreemptionGuard() as guard:
    print("ready", flush=True)
    while not guard.stop():
        time.sleep(0.01)
    print("saving", flush=True)
    sys.stdin.readline()
    sys.exit(guard.exit_code)
"""


@pytest.mark.parametrize(("number", "saves"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_signal_during_a_save(number: int, saves: bool) -> None:
    """SIGTERM while the loop saves is torchrun's, and waits; a second Ctrl-C leaves at once."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", PRELUDE + SAVE]
    with warm.Popen(command, env=ENV, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as run:
        assert run.stdout
        assert run.stdout.readline() == "ready\n"
        run.send_signal(number)
        assert run.stdout.readline() == "saving\n"
        begun = time.monotonic()
        while run.poll() is None and time.monotonic() < begun + 3:
            time.sleep(0.4)
            run.send_signal(number)
        assert (run.poll() is None) == saves
        _, errors = run.communicate("\n" if saves else None)
        assert run.returncode == PreemptionGuard.exit_code
    assert ("SIGINT came a second time" in errors) == (not saves)


TRAIN = """
from batteries import CheckpointManager, distribute, load_checkpoint, make_checkpoint
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
with distributed.setup() as device, PreemptionGuard() as guard:
    model = distribute(torch.nn.Linear(2, 1, bias=False), device)
    manager = CheckpointManager("kept")
    begun = step = load_checkpoint(manager.last_path, model)["step"] if attempt else 0
    while True:
        step += 1
        model(torch.ones(1, 2)).sum().backward()
        if step == 20 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        if step == begun + 20 and attempt and distributed.is_main():
            print("again from", begun, flush=True)
        if guard.stop():
            os.write(1, f"stopped after {step}\\n".encode())  # two ranks write: in one piece
            manager.save_last(make_checkpoint("train", 0, model, step=step))
            sys.exit(guard.exit_code)
"""


def test_torchrun() -> None:
    """One rank's signal restarts all where they stopped; SIGTERM to torchrun ends all alike."""
    Path("train.py").write_text(PRELUDE + TRAIN)
    command = warm.torchrun("--nproc-per-node=2", "--max-restarts=1", "train.py")
    with warm.Popen(command, env=ENV, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout
        lines = warm.told_by(run.stdout)
        first, again = [next(lines), next(lines)], next(lines)
        run.send_signal(signal.SIGTERM)
        second = [*lines]
    assert first[0] == first[1]
    assert again.split()[-1] == first[0].split()[-1]
    assert len(second) == 2
    assert second[0] == second[1]
    assert torch.load("kept/last.pth")["step"] == int(second[0].split()[-1])
    assert run.returncode != 0


def test_only_in_the_main_thread() -> None:
    """In another thread it says that signals come to the main one."""
    errors: list[Exception] = []

    def enter() -> None:
        try:
            PreemptionGuard().__enter__()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert "enter it in the main thread" in str(errors[0])


def stop_by(told: int, *, time_limit: float | None = None) -> tuple[int, int, str | None]:
    """Where this rank stopped, and why, when one of them has a limit or asks for it."""
    asks = distributed.rank() == told
    with PreemptionGuard(30, time_limit=time_limit if asks else None) as guard:
        for step in range(1, 10**6):
            distributed.all_reduce(1)
            if asks and step == 3 and time_limit is None:
                guard.request("the disk is full")
            if guard.stop():
                return step, guard.exit_code, guard.why
    raise AssertionError("it never stopped")


def both_stops() -> list[tuple[int, int, str | None]]:
    return [stop_by(1, time_limit=0), stop_by(0)]


def test_limits_and_requests_of_one_rank() -> None:
    """The limit of one rank, or its program's request, stops all at one step, and all know why."""
    one, other = run_ranks(both_stops)
    assert one == other
    (_, code, why), (step, _, asked) = one
    assert code == 75
    assert why is not None
    assert re.fullmatch(r"the time limit of 0, which ends in 0 s \(rank 1\)", why)
    assert step >= 3
    assert asked == "the disk is full (rank 0)"


def stops_at_once(seconds: float, reserve: float = 0.0) -> bool:
    return PreemptionGuard(time_limit=seconds_lived() + seconds, reserve=reserve).stop()


def test_a_save_fits_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """What saves took, twice, the longest step and the reserve are left before the limit."""
    saves: deque[float] = deque(maxlen=5)
    monkeypatch.setattr(_preemption, "_saves", saves)
    assert [stops_at_once(900, 1000), stops_at_once(900), stops_at_once(-1)] == [True, False, True]
    guard = PreemptionGuard(time_limit=timedelta(seconds=seconds_lived() + 0.5), reserve=0)
    with _preemption.timed_save():
        threading.Event().wait(0.26)
    assert guard.stop()
    save_checkpoint({"epoch": 1}, "a.pth")
    with CheckpointManager("kept", background=True) as manager:
        manager.save_last({"epoch": 1})
    assert len(saves) == 3
    guard = PreemptionGuard(time_limit=seconds_lived() + 900, reserve=0)
    saves.append(450)
    assert guard.requested


@pytest.mark.parametrize(("left", "stops"), [("10", True), ("3600", False), ("", False)])
def test_the_limit_of_slurm(left: str, stops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a Slurm job counts, where that is known, and the earlier of two limits."""
    end = str(int(time.time() + float(left))) if left else "UNLIMITED"
    monkeypatch.setenv("SLURM_JOB_END_TIME", end)
    guard = PreemptionGuard(time_limit="30d")
    assert guard.stop() == stops
    assert ("Slurm's time limit" in str(guard.why)) == stops


def test_time_limits() -> None:
    """They are texts, numbers or timedeltas; others are named."""
    lived = seconds_lived()
    for limit, seconds in (("8h50m", 31800), ("1d 2.5h", 95400), (90, 90), ("45s", 45)):
        ends = PreemptionGuard(time_limit=limit)._ends
        assert ends
        assert ends[0] - time.monotonic() == pytest.approx(seconds - lived, abs=30)
    for wrong in ("8:50", "", "soon", -1):
        with pytest.raises(ValueError, match=r'time_limit is .*; expected seconds, .* "8h50m"'):
            PreemptionGuard(time_limit=wrong)


def recorded_until_stopped() -> None:
    with start_run("runs/a"), PreemptionGuard() as guard:
        guard.request("no disk")
        if guard.stop():
            raise SystemExit(guard.exit_code)


def test_the_record_says_why() -> None:
    """A run that a guard has stopped has the reason in its record."""
    with pytest.raises(SystemExit) as left:
        recorded_until_stopped()
    assert left.value.code == 75
    session = (read_record("runs/a/001") or {})["sessions"][-1]
    assert (session["state"], session["why"]) == ("stopped", "no disk")


def test_the_record_of_a_stop_in_evaluation() -> None:
    """A loop that ends because of `requested`, without `stop`, also records the reason."""

    def evaluate() -> None:
        with start_run("runs/a"), PreemptionGuard() as guard:
            os.kill(os.getpid(), signal.SIGUSR1)
            if guard.requested:
                raise SystemExit(guard.exit_code)

    with pytest.raises(SystemExit):
        evaluate()
    session = (read_record("runs/a/001") or {})["sessions"][-1]
    assert (session["state"], session["why"]) == ("stopped", "SIGUSR1")


def test_a_guard_that_was_not_entered() -> None:
    """A guard outside of its block, which gets no signals and has no limit, warns once."""
    guard = PreemptionGuard()
    with pytest.warns(UserWarning, match=r"not entered.*with PreemptionGuard"):
        assert not guard.stop()
    assert not guard.stop()


def test_a_guard_that_was_entered_twice() -> None:
    """A guard is for one block: in a second one, the ranks would not agree, and it says so."""
    guard = PreemptionGuard()
    with guard:
        pass
    with pytest.raises(RuntimeError, match="entered before: make a new PreemptionGuard"):
        guard.__enter__()


def test_the_first_interval_counts() -> None:
    """A limit is kept though all that was measured is the time before the first stop()."""
    limit = seconds_lived() + 1.5
    with PreemptionGuard(time_limit=limit, reserve=0) as guard:
        begun = time.monotonic()
        while time.monotonic() - begun < 0.9:
            pass
        assert guard.stop()


def test_limits_below_zero() -> None:
    """A negative limit is an error, also as a timedelta."""
    with pytest.raises(ValueError, match="time_limit is -5"):
        PreemptionGuard(time_limit=-5)
    with pytest.raises(ValueError, match=r"time_limit is -5\.0"):
        PreemptionGuard(time_limit=timedelta(seconds=-5))
