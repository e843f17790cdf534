"""Who this process is: what the launcher said, and the process group that it made."""

from __future__ import annotations

import gc
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from batteries.distributed.attempts import attempt_store

_AT_ITS_END = "it came to its end"
_LEAVE = 10.0  # seconds for the others to come to their end
ANY_LEFT = "left/any"  # is there before the note of the first rank that leaves


class Launch(NamedTuple):
    """What the launcher said about this process.

    >>> Launch(rank=9, world_size=16, local_rank=1, local_world_size=8, init_method="env://").rank
    9
    """

    rank: int
    world_size: int
    local_rank: int | None  # None, 0: the launcher does not say
    local_world_size: int
    init_method: str


def launched() -> Launch | None:
    """Read what torchrun, torch.distributed.launch or Slurm put in the environment.

    >>> launched() is None  # started by hand
    True
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return Launch(
            rank=int(env["RANK"]),
            world_size=int(env["WORLD_SIZE"]),
            local_rank=int(env["LOCAL_RANK"]) if "LOCAL_RANK" in env else None,
            local_world_size=int(env.get("LOCAL_WORLD_SIZE", 0)),
            init_method="env://",
        )
    # A step's variable, not a job's: in a batch script outside srun there is one process only.
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        # "node[07-09,12],other3" begins with node07
        host = re.sub(r"\[(\w+)[^]]*\]", r"\1", env["SLURM_STEP_NODELIST"]).split(",")[0]
        host = env.get("MASTER_ADDR", host)
        # The same on every rank, different for jobs that share a host.
        port = env.get("MASTER_PORT", 20_000 + int(env["SLURM_JOB_ID"]) % 10_000)
        return Launch(
            rank=int(env["SLURM_PROCID"]),
            world_size=int(env["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(env["SLURM_LOCALID"]),
            local_world_size=0,
            init_method=f"tcp://{host}:{port}",
        )
    return None


@contextmanager
def setup(backend: str | None = None, timeout: timedelta | None = None) -> Iterator[torch.device]:
    """Join the process group that the launcher made, and leave it at the end, come what may.

    >>> with setup() as device:
    ...     weight = torch.zeros(1, device=device)

    Started by torchrun, `python -m torch.distributed.launch` or srun, each process gets its own
    GPU, or the CPU on a machine without GPUs. Started by hand there is no group, and the device is
    the first GPU or the CPU.

    Args:
        backend: Default: "gloo" for the CPU, with "nccl" for the GPUs where there are some. "gloo"
            alone keeps to the CPU.
        timeout: How long a collective waits for the other ranks; default: torch's own.

    Raises:
        ValueError: More processes were started on this host than it has GPUs.
    """
    launch = launched()
    gpus = torch.cuda.device_count()
    if launch is None:
        yield torch.device("cuda", 0) if gpus else torch.device("cpu")
        return
    device = torch.device("cpu")
    if (gpus and backend != "gloo") or backend == "nccl":
        device = torch.device("cuda", _gpu_index(local_rank(), launch.local_world_size, gpus))
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend or ("cpu:gloo,cuda:nccl" if gpus else "gloo"),
        **_meeting_place(launch, timeout),
        rank=launch.rank,
        world_size=launch.world_size,
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )
    why = _AT_ITS_END
    try:
        if "gloo" in dist.get_backend_config():
            # A rank that ends at once would close a connection that another is still making.
            dist.all_reduce(torch.zeros(1))
        yield device
    except BaseException as error:
        why = f"{type(error).__name__}: {error}"
        raise
    finally:
        with suppress(Exception):  # the store may be gone; then nobody waits for this rank
            _take_leave(why, wait=why == _AT_ITS_END)
        dist.destroy_process_group()
        # A thread of gloo lets go of the last collective's tensors a moment after it returned, and
        # aborts the process if python has ended by then (8 of 25 programs, with three processes a
        # core). It cannot be waited for; this takes long enough (0 of 25).
        gc.collect()


def _take_leave(why: str, wait: bool) -> None:
    """Say that this rank will not come again; a rank that ends well waits for the others a while.

    What the last collective sent to them may still be on its way, and is lost when this rank
    closes its connections.
    """
    store, deadline = notes(), time.monotonic() + _LEAVE
    store.set(ANY_LEFT, "")
    store.set(f"left/{dist.get_rank()}", why)
    everybody = [f"left/{other}" for other in range(dist.get_world_size())]
    while wait and not store.check(everybody) and time.monotonic() < deadline:
        time.sleep(0.01)


def notes() -> Any:
    """Where ranks leave word for each other, in a process group.

    >>> store = notes() if in_group() else None
    """
    shared = dist.distributed_c10d._get_default_store()
    return dist.PrefixStore("notes", shared)  # type: ignore[attr-defined]


def _meeting_place(launch: Launch, timeout: timedelta | None) -> dict[str, Any]:
    """Where the ranks find each other: torchrun's store outlives the workers, any other is new."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {"init_method": launch.init_method}
    limit = timeout or dist.default_pg_timeout
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, timeout=limit)  # type: ignore[attr-defined]
    return {"store": attempt_store(store, launch.rank, launch.world_size, limit)}


def _gpu_index(local_rank: int, local_world_size: int, gpus: int) -> int:
    """The GPU of a process among those it can see.

    >>> _gpu_index(local_rank=1, local_world_size=8, gpus=8)
    1
    """
    if local_world_size == 0 and gpus == 1:  # srun --gpus-per-task=1 shows each its own
        return 0
    wanted = local_world_size or local_rank + 1
    if wanted > gpus:
        remedy = f"start at most {gpus} (torchrun --nproc-per-node={gpus})" if gpus else "use gloo"
        raise ValueError(
            f"{wanted} processes were started on this host to train on its GPUs, but PyTorch can "
            f"use {gpus} here: {remedy}"
        )
    return local_rank


def in_group() -> bool:
    """Whether there is a process group.

    >>> in_group()
    False
    """
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process among all, from 0; what the launcher said where there is no group.

    >>> rank()
    0
    """
    if in_group():
        return dist.get_rank()
    launch = launched()
    return launch.rank if launch else 0


def world_size() -> int:
    """How many processes there are; what the launcher said where there is no group.

    >>> world_size()
    1
    """
    if in_group():
        return dist.get_world_size()
    launch = launched()
    return launch.world_size if launch else 1


def local_rank() -> int:
    """The number of this process among those of its host, from 0.

    >>> local_rank()
    0

    Raises:
        RuntimeError: There are several processes, and no launcher that said it.
    """
    launch = launched()
    if launch and launch.local_rank is not None:
        return launch.local_rank
    if world_size() > 1:
        raise RuntimeError(
            "the local rank is not known: LOCAL_RANK is not in the environment; start the program "
            "with torchrun, or set it where you start the processes"
        )
    return 0


def is_main() -> bool:
    """Whether this is the process that prints, logs and writes: global rank 0.

    >>> is_main()
    True
    """
    return rank() == 0
