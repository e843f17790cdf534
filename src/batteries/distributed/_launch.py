"""The rank of this process and the number of processes, from the launcher."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

import torch.distributed as dist


class Launch(NamedTuple):
    """What the launcher's environment variables say about this process."""

    rank: int
    world_size: int
    local_rank: int | None  # None: not known
    local_world_size: int  # 0: not known
    init_method: str


def launched() -> Launch | None:
    """Read the variables of torchrun, torch.distributed.launch or Slurm; None if there are none."""
    launch = _read()
    if launch is not None and launch.rank >= launch.world_size:
        raise ValueError(
            f"this is rank {launch.rank} of {launch.world_size} in the environment (RANK and "
            "WORLD_SIZE, or Slurm's); expected a rank of 0 or more, below the number of ranks"
        )
    return launch


def _read() -> Launch | None:
    env = os.environ
    ranked, counted = "RANK" in env, "WORLD_SIZE" in env
    if ranked and counted:
        return Launch(
            rank=number("RANK"),
            world_size=number("WORLD_SIZE"),
            local_rank=number("LOCAL_RANK") if "LOCAL_RANK" in env else None,
            local_world_size=number("LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in env else 0,
            init_method="env://",
        )
    # The variable of a step, not of the job: a batch script outside srun is one process.
    if "SLURM_STEP_NUM_TASKS" in env and number("SLURM_STEP_NUM_TASKS") > 1:
        # "node[07-09,12],other3" begins with node07
        host = env.get("MASTER_ADDR") or said("SLURM_STEP_NODELIST")
        host = re.sub(r"\[(\w+)[^]]*\]", r"\1", host).split(",")[0]
        # All ranks of a job compute the same port. Jobs on one host should get different ports.
        port = env.get("MASTER_PORT") or 20_000 + number("SLURM_JOB_ID") % 10_000
        return Launch(
            rank=number("SLURM_PROCID"),
            world_size=number("SLURM_STEP_NUM_TASKS"),
            local_rank=number("SLURM_LOCALID"),
            local_world_size=0,
            init_method=f"tcp://{host}:{port}",
        )
    if ranked or counted:
        said("WORLD_SIZE" if ranked else "RANK")  # raises
    return None


def said(name: str) -> str:
    """The value of a variable; an error if it is missing or empty."""
    if not os.environ.get(name):
        found = "empty" if name in os.environ else "missing"
        raise ValueError(
            f"{name} is {found} in the environment, but other variables say that a launcher has "
            "started this process: set it, or start the program with torchrun or srun"
        )
    return os.environ[name]


def number(name: str) -> int:
    """The value of a variable as a whole number."""
    text = said(name)
    if not text.strip().isdecimal():
        raise ValueError(f"{name} is {text!r} in the environment; expected a number, 0 or more")
    return int(text)


def in_group() -> bool:
    """Whether there is a process group."""
    return dist.is_available() and dist.is_initialized()


def place() -> tuple[int, int]:
    """The rank of this process and the number of processes; without a group, from the launcher."""
    if in_group():
        return dist.get_rank(), dist.get_world_size()
    launch = launched()
    return (launch.rank, launch.world_size) if launch else (0, 1)


def rank() -> int:
    """The number of this process among all, from 0. Without a group, the launcher's number.

    >>> rank()
    0

    Raises:
        ValueError: A variable of the launcher is missing or wrong. `world_size`, `local_rank` and
            `is_main` raise it, too.
    """
    return place()[0]


def world_size() -> int:
    """The number of processes. Without a group, the launcher's number.

    >>> world_size()
    1
    """
    return place()[1]


def local_rank() -> int:
    """The number of this process among the processes of its host, from 0.

    >>> local_rank()
    0

    Raises:
        RuntimeError: There are several processes, and the environment has no LOCAL_RANK.
    """
    launch = launched()
    if launch and launch.local_rank is not None:
        return launch.local_rank
    if world_size() > 1:
        raise RuntimeError(
            "the local rank is not known: LOCAL_RANK is not in the environment; start the program "
            "with torchrun, or set LOCAL_RANK where you start the processes"
        )
    return 0


def is_main() -> bool:
    """Whether this is global rank 0, the process that prints, logs and writes.

    >>> is_main()
    True
    """
    return rank() == 0
