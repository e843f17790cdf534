"""Join and leave the process group that the launcher has prepared."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from batteries._numbers import as_seconds
from batteries._warnings import warn
from batteries.distributed._groups import (
    ANY_LEFT,
    MissingRankError,
    break_off,
    counts,
    lend,
    notes,
    ranks_of,
    take_back,
    with_cause,
)
from batteries.distributed._launch import Launch, in_group, launched, local_rank, number, said
from batteries.distributed._waiting import Notes, StoreGoneError, seconds_between, wait_until

_LET_GO = 1.0  # seconds for gloo's threads to release tensors
_LEAVE = 10.0  # seconds for the other ranks to reach the end of the block
_LONGEST = 10_000 * 86400  # seconds; torch's 64 bits of nanoseconds end after 292 years
_PATIENCE = 30.0  # seconds of a wait, after which a warning names the missing ranks


@contextmanager
def setup(
    backend: str | None = None, timeout: str | float | timedelta | None = None
) -> Iterator[torch.device]:
    """Join the launcher's process group, and leave it at the end of the block or after an error.

    >>> with setup() as device:
    ...     weight = torch.zeros(1, device=device)

    If torchrun, `python -m torch.distributed.launch` or srun has started the program, each process
    gets its own GPU, or the CPU on a machine without GPUs. Without a launcher there is no group,
    and the device is the first GPU or the CPU.

    If a rank raises or dies, the connections are closed. Every wait of the other ranks then ends
    with an error that names the first cause, its rank and its host. Errors of torch's own
    collectives get this text when they leave the block. A rank that ends without an error waits up
    to 10 seconds for the others. If the ranks' store does not answer in 10 seconds, it counts as
    gone.

    Args:
        backend: Default: "gloo" for the CPU, and "nccl" for GPUs if there are some. With "gloo",
            the device is always the CPU.
        timeout: The longest time of a collective, including the wait for other ranks: "10m",
            seconds or a timedelta, 10,000 days at most. Default: 30 minutes, or torch's 10 with
            `backend="nccl"`.

    Raises:
        ValueError: The timeout cannot be read, is negative or too long. Or more processes were
            started on this host than it has GPUs. Or a variable of the launcher is missing or
            wrong. For example, `torch.multiprocessing.spawn` sets no variables.
        TypeError: The timeout is neither a number, a text nor a timedelta.
        RuntimeError: A collective in the block has failed. The message names the first cause. Or
            the program already has a process group.
        TimeoutError: Under torchrun, a rank did not come in time. The message names it. Under other
            launchers, torch raises its `DistStoreError`.
    """
    limit = None if timeout is None else _limit(timeout)
    launch = launched()
    gpus = torch.cuda.device_count()
    if launch is None:
        _refuse_spawned()
        yield torch.device("cuda", 0) if gpus and backend != "gloo" else torch.device("cpu")
        return
    if in_group():
        raise RuntimeError(
            "there is already a process group: call setup() once, and leave out init_process_group"
        )
    device = torch.device("cpu")
    if (gpus and backend != "gloo") or backend == "nccl":
        device = torch.device("cuda", _gpu_index(local_rank(), launch.local_world_size, gpus))
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend or ("cpu:gloo,cuda:nccl" if gpus else "gloo"),
        **_meeting_place(launch, limit),
        rank=launch.rank,
        world_size=launch.world_size,
        timeout=limit,
        device_id=device if device.type == "cuda" else None,
    )
    why, well, raised = "it came to its end", True, False
    try:
        if "gloo" in dist.get_backend_config():
            # A rank that ends at once would close a connection that another rank still opens.
            connected = torch.zeros(1, device="cpu")
            lend(connected)
            dist.all_reduce(connected)
        notes().set(f"host/{launch.rank}", platform.node())
        yield device
    except BaseException as error:
        raised = True
        why, well = f"{type(error).__name__}: {error}", isinstance(error, SystemExit)
        told = why if well else with_cause(error)
        says_who = isinstance(error, MissingRankError) or not isinstance(error, RuntimeError)
        if told != why and not says_who:
            raise RuntimeError(told) from error
        raise
    finally:
        try:
            _leave(why, well)
        except Exception:
            if not raised:  # else the error of the block counts
                raise


def _limit(timeout: str | float | timedelta) -> timedelta:
    seconds = as_seconds(timeout, "timeout")
    if seconds > _LONGEST:
        raise ValueError(
            f"timeout is {timeout}; expected {_LONGEST // 86400:,} days at most, since torch "
            "counts nanoseconds"
        )
    return timedelta(seconds=seconds)


def _leave(why: str, well: bool) -> None:
    together = False
    with suppress(RuntimeError):  # if the store is gone, no rank waits for this one
        together = _take_leave(why, well)
    if not together:
        for group in list(dist.distributed_c10d._world.pg_map):
            break_off(ranks_of(group))
            # The group is never freed. Freeing it would wait for gloo's threads, and a thread that
            # found its connection closed may wait until its timeout.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))
    if together or "nccl" not in dist.get_backend_config():
        dist.destroy_process_group()
    else:  # nccl would wait for its last collectives, and these for the other ranks
        dist.distributed_c10d._abort_process_group()
    # If something still holds the group, such as a DDP model, its threads live on.
    take_back(_LET_GO)
    time.sleep(0.01)  # for the program's own collectives, whose tensors are not in the list


def _take_leave(why: str, well: bool) -> bool:
    """Write that this rank leaves; return whether all ranks have written so.

    A rank that ends without an error waits for the others. Data of the last collective may still
    be on its way to them, and is lost when this rank closes its connections.
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
    """Refuse processes of torch's `spawn` without variables: each would run alone."""
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.multiprocessing.spawn":
            raise ValueError(
                "torch.multiprocessing.spawn has started this process, and the environment has "
                "no rank: set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in it "
                "before setup(), or start the program with torchrun"
            )
        frame = frame.f_back


def _meeting_place(launch: Launch, timeout: timedelta | None) -> dict[str, Any]:
    """The store in which the ranks find each other: torchrun's, or a new one."""
    if launch.init_method != "env://":
        return {"init_method": launch.init_method}
    address, port = said("MASTER_ADDR"), number("MASTER_PORT")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {"init_method": launch.init_method}
    limit = timeout or dist.default_pg_timeout
    store = dist.TCPStore(address, port, is_master=False, timeout=limit)  # type: ignore[attr-defined]
    return {"store": attempt_store(store, launch.rank, launch.world_size, limit)}


def _gpu_index(local_rank: int, local_world_size: int, gpus: int) -> int:
    """The GPU of a process among those that it can see."""
    if local_world_size == 0 and gpus == 1:  # srun --gpus-per-task=1 shows each process one GPU
        return 0
    wanted = local_world_size or local_rank + 1
    if wanted > gpus:
        most = f"start at most {gpus} (torchrun --nproc-per-node={gpus})"
        remedy = most if gpus else 'use gloo: setup("gloo")'
        started = "1 process was" if wanted == 1 else f"{wanted} processes were"
        raise ValueError(
            f"{started} started on this host to train on its GPUs, but PyTorch can use {gpus} "
            f"here: {remedy}"
        )
    return local_rank


def attempt_store(store: Store, rank: int, world_size: int, timeout: timedelta) -> Store:
    """A part of a store for the processes that were started together.

    torchrun keeps one store for all its restarts, and PyTorch writes a group's addresses under the
    same keys each time. So a worker that starts before the others could connect to dead ones.
    TORCHELASTIC_RESTART_COUNT does not help: it may differ between hosts, because a host that
    restarts after another's failure does not count it. So rank 0 makes up a name for the start.

    Each process writes a number of its own under its rank and waits for an answer to that number.
    Rank 0 answers all numbers, old and new, until every rank has confirmed the name.

    Raises:
        TimeoutError: Not all ranks came in time; the message names those that are missing.
    """
    meeting = Notes(store, "attempts")
    name = str(uuid.uuid4()) if rank == 0 else _ask(meeting, rank, timeout)
    if rank == 0:
        _answer(meeting, name, world_size, timeout)
    return PrefixStore(f"attempt/{name}", store)


def _ask(store: Notes, rank: int, timeout: timedelta) -> str:
    own, seconds = str(uuid.uuid4()), timeout.total_seconds()
    store.set(f"asked/{rank}", own)
    try:
        asked = _telling(
            lambda: store.check([f"answered/{own}"]), lambda: f"rank {rank} has waited for rank 0"
        )
        met = wait_until(asked, seconds)
    except StoreGoneError as error:
        raise TimeoutError(f"rank {rank} found no rank 0: {error}") from error
    name = store.get(f"answered/{own}") if met else None
    if name is None:
        raise TimeoutError(
            f"rank {rank} found no rank 0 in {seconds:g} s: read in its log why it ended or did "
            "not start, and check MASTER_ADDR and MASTER_PORT"
        )
    store.set(f"confirmed/{name}/{rank}", own)
    return name


def _answer(store: Notes, name: str, world_size: int, timeout: timedelta) -> None:
    answered: dict[int, str] = {}
    missing = set(range(1, world_size))

    def all_confirmed() -> bool:
        for rank in sorted(missing):
            asked = store.get(f"asked/{rank}")
            if asked and asked != answered.get(rank):
                store.set(f"answered/{asked}", name)
                answered[rank] = asked
            if store.check([f"confirmed/{name}/{rank}"]):
                missing.discard(rank)
        return not missing

    asked = _telling(all_confirmed, lambda: f"rank 0 has waited for ranks {sorted(missing)}")
    if not wait_until(asked, timeout.total_seconds()):
        raise TimeoutError(
            f"rank 0 waited {timeout.total_seconds():g} s for ranks {sorted(missing)}, which "
            "did not come: read in their logs why they ended or did not start"
        )


def _telling(over: Callable[[], bool], who: Callable[[], str]) -> Callable[[], bool]:
    """Check a condition, and warn once if it is still false after 30 seconds."""
    late: float | None = time.monotonic() + _PATIENCE

    def asked() -> bool:
        nonlocal late
        answer = over()
        if not answer and late is not None and time.monotonic() > late:
            late = None
            warn(
                f"{who()} in setup() for {_PATIENCE:g} s: check whether all ranks have started, "
                "and whether one has ended",
            )
        return answer

    return asked
