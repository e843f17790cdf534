"""Two hosts, as namespaces of the network with a cable between them that is cut now and then."""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

import killable
import pytest
import torch
from killable import STEPS, Kill, experiment
from stress_resume import undisturbed
from torch.distributed.run import main as torchrun
from warm import context, start

from batteries import distributed
from batteries.checkpoint import read_checkpoint

TIMEOUT = 8  # seconds, of the group
LATE = 15  # after which all have ended
CLONE_NEWNET = 0x40000000
NAMES = ["batteries-host-0", "batteries-host-1"]
ADDRESSES = ["10.77.0.1", "10.77.0.2"]


@contextmanager
def cable() -> Iterator[None]:
    """Two namespaces, and what connects them."""
    a, b = NAMES
    lines = [
        *(f"ip netns add {name}" for name in NAMES),
        f"ip link add cable0 netns {a} type veth peer name cable1 netns {b}",
        *(
            f"ip -n {name} addr add {address}/24 dev cable{host}"
            for host, (name, address) in enumerate(zip(NAMES, ADDRESSES, strict=True))
        ),
        *(f"ip -n {name} link set lo up" for name in NAMES),
        *(f"ip -n {name} link set cable{host} up" for host, name in enumerate(NAMES)),
    ]
    try:
        for line in lines:
            subprocess.run(line.split(), check=True, capture_output=True)
        yield
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs network namespaces, which this machine refuses: {error}")
    finally:
        for name in NAMES:
            with suppress(OSError):
                subprocess.run(["ip", "netns", "del", name], capture_output=True)


def switch(state: str) -> None:
    """The cable "up" or "down"."""
    subprocess.run(["ip", "-n", NAMES[0], "link", "set", "cable0", state], check=True)


def enter(host: int) -> None:
    """Make this process one of that host."""
    with Path("/run/netns", NAMES[host]).open() as namespace:
        assert ctypes.CDLL(None).setns(namespace.fileno(), CLONE_NEWNET) == 0
    os.environ |= {"GLOO_SOCKET_IFNAME": f"cable{host}", "OMP_NUM_THREADS": "1"}
    os.environ |= {"CUDA_VISIBLE_DEVICES": "-1"}
    torch.set_num_threads(1)


def rank_on(
    host: int, rank: int, port: int, directory: str, kills: list[Kill], pipe: Connection
) -> None:
    """One of two ranks, on a host; what it says is the digest, or why it ended."""
    enter(host)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": ADDRESSES[host ^ rank], "MASTER_PORT": str(port)}
    try:
        with distributed.setup(timeout=timedelta(seconds=TIMEOUT)):
            pipe.send((True, experiment(directory, kills)))
    except BaseException as error:
        pipe.send((False, f"{type(error).__name__}: {error}"))
        raise SystemExit(1) from None


class Round:
    """A run that is disturbed and started again until it ends."""

    def __init__(self, directory: Path, chance: random.Random) -> None:
        self.directory, self.chance = directory, chance
        what = chance.choice(["SIGKILL", "SIGTERM", "none"])
        self.kills = [(chance.randint(1, STEPS), chance.randrange(2), what)]
        self.outside = chance.choice(["cut", "stop", "none"] if what != "none" else ["cut", "stop"])
        self.fault_at = chance.randint(1, 6)  # files of the run's directory that are there
        self.seconds = chance.choice([1, 5, 20])
        self.told: list[str] = []

    def attempt(self, number: int) -> str | None:
        """The digest, or None where a rank has ended before."""
        first = self.chance.randrange(2)  # the host of rank 0: a restart may be elsewhere
        pipes, ranks = [], []
        for rank in range(2):
            ours, theirs = context.Pipe(duplex=False)
            where = first ^ rank
            args = (where, rank, 29500 + number, str(self.directory), self.kills, theirs)
            ranks.append(start(rank_on, *args))
            theirs.close()
            pipes.append(ours)
        if self.outside != "none":
            self._disturb(ranks)
        results = []
        ended: float | None = None
        for pipe, process in zip(pipes, ranks, strict=True):
            limit = 120 if ended is None else max(0.0, ended + TIMEOUT + LATE - time.monotonic())
            process.join(limit)
            if process.exitcode is None:
                process.kill()
                raise AssertionError(f"a rank hangs: {self}")
            ended = ended or time.monotonic()
            with suppress(EOFError):
                results.append(pipe.recv())
        self.told += [text for well, text in results if not well]
        good = [text for well, text in results if well]
        return good[0] if len(good) == 2 else None

    def _disturb(self, ranks: list[BaseProcess]) -> None:
        checkpoints = self.directory / "checkpoints"
        while len(list(checkpoints.glob("*"))) < self.fault_at:
            if any(process.exitcode is not None for process in ranks):
                return
            time.sleep(0.005)
        outside, self.outside = self.outside, "none"  # once
        if outside == "cut":
            switch("down")
            time.sleep(self.seconds)
            switch("up")
        else:
            process = self.chance.choice(ranks)
            with suppress(ProcessLookupError):
                os.kill(process.pid or 0, signal.SIGSTOP)
                time.sleep(self.seconds)
                os.kill(process.pid or 0, signal.SIGCONT)

    def __str__(self) -> str:
        return f"{self.kills}, {self.fault_at}, {self.seconds} s"


def hosts(number: int, chance: random.Random) -> str:
    """So many runs on two hosts, each disturbed at random; no run may end with other bits."""
    starts, longest = 0, 0.0
    with cable():
        for _ in range(number):
            with TemporaryDirectory() as folder:
                run = Round(Path(folder, "run"), chance)
                run.directory.mkdir()
                begun, found = time.monotonic(), None
                while found is None:
                    starts += 1
                    found = run.attempt(starts)
                    assert starts < 20 * number, run.told
                longest = max(longest, time.monotonic() - begun)
            assert found == undisturbed(2), (str(run), run.told)
    told = f"{starts} starts, {longest:.0f} s at most"
    return f"{number} runs on two hosts, {told}, all with the bits of undisturbed ones"


# ---------------------------------------------------------------- torchrun, on one host or on two


def agent_on(host: int, first: int, port: int, directory: str, kills: list[Kill]) -> None:
    """A torchrun that goes on with whatever hosts there are; the first host keeps its store."""
    os.setsid()
    enter(host)
    options = [
        *("--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=9", "--monitor-interval=0.1"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[first]}:{port}", "--rdzv-id=a"),
        f"--rdzv-conf=is_host={int(host == first)},last_call_timeout=1,keep_alive_interval=1",
        *(f"--local-addr={ADDRESSES[host]}", "--run-path", "--start-method=fork"),
    ]
    sys.argv = ["torchrun"]
    torchrun([*options, killable.__file__, directory, json.dumps(kills), "0"])


def elastic(number: int, chance: random.Random) -> str:
    """So many runs of an elastic torchrun that loses a host and gets it back: none is lost."""
    port, worlds = 29600, [0, 0, 0]
    with cable():
        for _ in range(number):
            with TemporaryDirectory() as folder:
                directory = Path(folder, "run")
                directory.mkdir()
                kill = (chance.randint(1, STEPS), 0, chance.choice(["SIGKILL", "SIGTERM"]))
                lost, fault_at = chance.randrange(2), chance.randint(1, 6)
                late = chance.random() < 0.5
                told, agents = f"{kill}, host {lost} at {fault_at}, back {late=}", {}
                for first in (0, 1):  # where the host of the store is lost, the other one has it
                    port += 1
                    where = (port, str(directory), [kill])
                    agents = {host: start(agent_on, host, first, *where) for host in (0, 1)}
                    if not first:
                        _wait(directory, fault_at, agents)
                        _kill(agents[lost])
                        if lost != first and not (late and _alone(directory, agents[first])):
                            agents[lost] = start(agent_on, lost, first, *where)  # it comes back
                    codes = [_end_of(agent, told) for agent in agents.values()]
                    if 0 in codes:
                        break
                assert 0 in codes, told
                last = read_checkpoint(directory / "checkpoints/last.pth")
                rows = json.loads((directory / "checkpoints/metrics.json").read_text())["values"]
                assert (last["step"], [row["epoch"] for row in rows]) == (STEPS, [1, 2]), told
                assert rows[-1]["step"] == STEPS, told
                for line in (directory / "worlds").read_text().split():
                    worlds[int(line)] += 1
    told = f"{worlds[1]} times with one host, {worlds[2]} times with both"
    return f"{number} runs, started {told}, all with every step"


def _wait(directory: Path, files: int, agents: dict[int, BaseProcess]) -> None:
    while len(list((directory / "checkpoints").glob("*"))) < files:
        if any(agent.exitcode is not None for agent in agents.values()):
            return
        time.sleep(0.005)


def _alone(directory: Path, agent: BaseProcess) -> bool:
    """Wait until one host goes on without the other; whether it has come to the end so."""
    worlds = directory / "worlds"
    while agent.exitcode is None and "1" not in worlds.read_text().split():
        time.sleep(0.1)
    return agent.exitcode is not None


def _kill(agent: BaseProcess) -> None:
    """All that runs on its host."""
    with suppress(ProcessLookupError):
        os.killpg(agent.pid or 0, signal.SIGKILL)
    agent.join()


def _end_of(agent: BaseProcess, told: str) -> int | None:
    agent.join(180)
    if agent.exitcode is None:
        _kill(agent)
        raise AssertionError(f"an agent hangs: {told}")
    return agent.exitcode
