"""Join and leave the process group that the launcher has prepared."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from batteries.distributed._attempts import attempt_store
from batteries.distributed._causes import MissingRankError, with_cause
from batteries.distributed._groups import (
    ANY_LEFT,
    break_off,
    counts,
    lend,
    notes,
    ranks_of,
    take_back,
)
from batteries.distributed._launch import Launch, launched, local_rank, number, said
from batteries.distributed._waiting import seconds_between, wait_until

_AT_ITS_END = "it came to its end"
_LET_GO = 1.0  # seconds for gloo's threads to let go of tensors
_LEAVE = 10.0  # seconds for the others to come to their end


@contextmanager
def setup(backend: str | None = None, timeout: timedelta | None = None) -> Iterator[torch.device]:
    """Join the process group of the launcher, and leave it at the end of the block, also on errors.

    >>> with setup() as device:
    ...     weight = torch.zeros(1, device=device)

    Started by torchrun, `python -m torch.distributed.launch` or srun, each process gets its own
    GPU, or the CPU on a machine without GPUs. Started by hand there is no group, and the device is
    the first GPU or the CPU.

    Args:
        backend: Default: "gloo" for the CPU, with "nccl" for the GPUs where there are some. "gloo"
            alone keeps to the CPU.
        timeout: How long a collective may take, with the wait for the other ranks; default:
            torch's own, 30 minutes.

    When a rank raises, or a collective fails because a rank is gone, the connections are closed:
    all that the others wait for ends, with an error that names the first cause, its rank and its
    host. Errors of torch's own collectives get that when they leave the block. A rank that
    ends well waits up to 10 seconds for the others to end. A question to the ranks' store has 10
    seconds; one that does not answer is taken for gone.

    Raises:
        ValueError: More processes were started on this host than it has GPUs; a variable of the
            launcher is missing, or `torch.multiprocessing.spawn` has set none.
    """
    launch = launched()
    gpus = torch.cuda.device_count()
    if launch is None:
        _refuse_spawned()
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
    why, well = _AT_ITS_END, True
    try:
        if "gloo" in dist.get_backend_config():
            # A rank that ends at once would close a connection that another is still making.
            connected = torch.zeros(1)
            lend(connected)
            dist.all_reduce(connected)
        notes().set(f"host/{launch.rank}", platform.node())
        yield device
    except BaseException as error:
        why, well = f"{type(error).__name__}: {error}", isinstance(error, SystemExit)
        told = why if well else with_cause(error)
        says_who = isinstance(error, MissingRankError) or not isinstance(error, RuntimeError)
        if told != why and not says_who:
            raise RuntimeError(told) from error
        raise
    finally:
        _leave(why, well)


def _leave(why: str, well: bool) -> None:
    together = False
    with suppress(RuntimeError):  # of the store: then nobody waits for this rank
        together = _take_leave(why, well)
    if not together:
        for group in list(dist.distributed_c10d._world.pg_map):
            break_off(ranks_of(group))
            # It is never freed. It would wait for gloo's threads, and one of them may wait to its
            # timeout: gloo can tell a collective nothing about a connection that it found closed.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))
    dist.destroy_process_group()
    # Where something has the group still, such as a model in DDP, its threads live on.
    take_back(_LET_GO)
    time.sleep(0.01)  # for the program's own collectives, whose tensors nobody here knows


def _take_leave(why: str, well: bool) -> bool:
    """Say that this rank will not come again; whether all have said so.

    A rank that ends well waits for the others a while. What the last collective sent to them may
    still be on its way, and is lost when this rank closes its connections.
    """
    store = notes()
    done = {str(group.group_name): number for group, number in counts.items()}
    store.set(ANY_LEFT, "")
    store.set(f"left/{dist.get_rank()}", json.dumps([why, well, done]))
    store.add("left/number", 1)
    ranks = dist.get_world_size()

    def over() -> bool:
        return int(store.get("left/number") or 0) == ranks

    return well and wait_until(over, _LEAVE, pause=seconds_between(ranks, 0.01))


def _refuse_spawned() -> None:
    """Refuse processes of torch's `spawn` without variables: each would believe it is alone."""
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.multiprocessing.spawn":
            raise ValueError(
                "torch.multiprocessing.spawn has started this process, and the environment does "
                "not say which it is: set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and "
                "MASTER_PORT in it before setup(), or start the program with torchrun"
            )
        frame = frame.f_back


def _meeting_place(launch: Launch, timeout: timedelta | None) -> dict[str, Any]:
    """The store in which the ranks find each other: torchrun's (it outlives them) or a new one."""
    if launch.init_method != "env://":
        return {"init_method": launch.init_method}
    address, port = said("MASTER_ADDR"), number("MASTER_PORT")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {"init_method": launch.init_method}
    limit = timeout or dist.default_pg_timeout
    store = dist.TCPStore(address, port, is_master=False, timeout=limit)  # type: ignore[attr-defined]
    return {"store": attempt_store(store, launch.rank, launch.world_size, limit)}


def _gpu_index(local_rank: int, local_world_size: int, gpus: int) -> int:
    """The GPU of a process among those it can see."""
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
