"""Kill a rank at a random moment of what ranks do together: the others end, and name it."""

from __future__ import annotations

import faulthandler
import itertools
import os
import random
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from warm import start

from batteries import AverageMeter, Predictions, distributed
from batteries.distributed import _rank_zero
from batteries.distributed._rank_zero import others_wait
from batteries.distributed._waiting import wait_until

WORLDS = 4  # at once: with three ranks each they keep two cores more than busy
LIMIT = 90.0  # seconds from a death to the end of the last rank


def gather_rows(dst: int | None, size: int) -> None:
    rank, ranks = distributed.rank(), distributed.world_size()
    outputs = Predictions(size)
    own = range(rank, size, ranks)
    outputs.add(own, value=torch.zeros(len(own), 3), name=["text"] * len(own))
    outputs.gather(dst)


def one_after_another() -> None:
    with distributed.rank_zero_first():
        pass


def work_of_rank_zero() -> None:
    with others_wait():
        if distributed.is_main():
            time.sleep(0.05)


def all_meters() -> None:
    meter = AverageMeter()
    meter.update(distributed.rank())
    meter.all_reduce(dist.group.WORLD)


OPERATIONS: list[Callable[[int], object]] = [
    lambda _: distributed.barrier(),
    lambda size: distributed.all_gather(torch.zeros(size)),
    lambda size: distributed.all_gather(torch.zeros(size + distributed.rank())),
    lambda size: distributed.all_gather({"text": "x" * size}),
    lambda size: distributed.broadcast(torch.zeros(size)),
    lambda size: distributed.broadcast("x" * size, src=1),
    lambda size: distributed.all_reduce(torch.zeros(size)),
    lambda size: distributed.all_reduce(torch.zeros(size), "max"),
    lambda size: distributed.all_reduce(torch.zeros(size), check=False),
    lambda size: distributed.all_reduce(size),
    lambda _: distributed.together(lambda: None),
    lambda _: distributed.rank_zero_only(share=True)(lambda: "result")(),
    lambda _: one_after_another(),
    lambda _: work_of_rank_zero(),
    lambda _: all_meters(),
    lambda size: gather_rows(None, size // 8),
    lambda size: gather_rows(0, size // 8),
    lambda size: gather_rows(1, size // 8),
]


def work(env: dict[str, str], seed: int, folder: Path) -> None:
    """Do one operation after another, the same on all ranks, until one fails."""
    os.environ.update(env)
    torch.set_num_threads(1)
    faulthandler.register(signal.SIGUSR1, (folder / f"stack-{env['RANK']}").open("w"))
    _rank_zero._SAY_EVERY, _rank_zero._SILENCE = 0.5, 5.0
    chance, rank = random.Random(seed), env["RANK"]
    with suppress(RuntimeError), distributed.setup():
        try:
            for number in itertools.count():
                operation, size = chance.choice(OPERATIONS), chance.choice([10, 10**4, 10**6])
                operation(size)
                if number == 0:
                    (folder / f"ready-{rank}").touch()
        except RuntimeError as error:
            (folder / f"error-{rank}").write_text(str(error))
            raise


def start_world(world_size: int, seed: int, folder: Path) -> tuple[TCPStore, list[BaseProcess]]:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    env = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    ranks = [{**env, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]
    return store, [start(work, rank, seed, folder) for rank in ranks]


def stack_of(process: BaseProcess, path: Path) -> str:
    os.kill(process.pid or 0, signal.SIGUSR1)
    wait_until(lambda: bool(path.read_text()), 10)
    return path.read_text() or "nobody knows where"


def kill_one(chance: random.Random) -> float:
    """How long the others took; raises if they do not end, or do not name the dead one."""
    world_size, seed = chance.choice([2, 3, 3, 4]), chance.randrange(2**32)
    dead, moment = chance.randrange(world_size), chance.uniform(0, 1.5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store, processes = start_world(world_size, seed, folder)
        try:
            ready = wait_until(lambda: len(list(folder.glob("ready-*"))) == world_size, LIMIT)
            assert ready, "they did not begin"
            threading.Event().wait(moment)
            processes[dead].kill()
            begun = time.monotonic()
            for rank, process in enumerate(processes):
                process.join(max(LIMIT - (time.monotonic() - begun), 1))
                where = stack_of(process, folder / f"stack-{rank}") if process.is_alive() else ""
                assert not where, f"seed {seed}: rank {rank} hangs after {dead} died: {where}"
            taken = time.monotonic() - begun
        finally:
            for process in processes:
                process.kill()
        for rank in set(range(world_size)) - {dead}:
            told = (folder / f"error-{rank}").read_text()
            missing = re.findall(r"rank (\d+) (?:did not come|has left)", told)
            assert set(missing) == {str(dead)}, f"seed {seed}: rank {dead} died, and {rank}: {told}"
    del store
    return taken


def collectives(number: int, chance: random.Random) -> str:
    """That many ranks killed, in several worlds at once."""
    draws = [random.Random(chance.randrange(2**32)) for _ in range(number)]
    with ThreadPoolExecutor(WORLDS) as threads:
        taken = list(threads.map(kill_one, draws))
    return f"0 hangs, the dead rank named each time, after {max(taken):.1f} s at most"
