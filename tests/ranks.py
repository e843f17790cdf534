"""Run a function on real ranks: one process each, started as torchrun starts them."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from warm import context, start

from batteries import distributed

DEADLINE = 120  # seconds: a slow machine passes, a hang fails


def run_ranks(
    function: Callable[..., Any],
    *args: Any,
    world_size: int = 2,
    group: bool = True,
    gpus: bool = False,
    env: dict[str, str] | None = None,
) -> list[Any]:
    """Return what `function(*args)` returned on each rank, or the exception that it raised.

    Args:
        group: Call it inside `distributed.setup()`.
        gpus: Let them see the GPUs: nccl then, and one for each rank.
        env: Variables besides the launcher's; an empty one is unset.
    """
    # The store lives here, on a port that the system chose, as torchrun's agent has it.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    launcher = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        **({} if gpus else {"CUDA_VISIBLE_DEVICES": "-1"}),
        **(env or {}),
    }
    pipes, processes = [], []
    for rank in range(world_size):
        ours, theirs = context.Pipe(duplex=False)
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), **launcher}
        process = start(_run, function, args, own, group, theirs)
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        return [_receive(pipe, rank) for rank, pipe in enumerate(pipes)]
    finally:
        for process in processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()


def _receive(pipe: Connection, rank: int) -> Any:
    if not wait([pipe], timeout=DEADLINE):
        raise TimeoutError(f"rank {rank} did not finish in {DEADLINE} s")
    result, text = pickle.loads(pipe.recv_bytes())  # EOFError: the process died
    if text:
        print(f"--- rank {rank} raised ---\n{text}")
    return result


def _run(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    env: dict[str, str],
    group: bool,
    pipe: Connection,
) -> None:
    os.environ.update({name: value for name, value in env.items() if value})
    for name in [name for name, value in env.items() if not value]:
        os.environ.pop(name, None)
    torch.set_num_threads(1)
    try:
        if group:
            with distributed.setup():
                result = function(*args)
        else:
            result = function(*args)
    except BaseException as error:
        pipe.send_bytes(_pickled(error, traceback.format_exc()))
    else:
        pipe.send_bytes(_pickled(result, ""))


def _pickled(result: object, text: str) -> bytes:
    try:
        data = pickle.dumps((result, text))
        pickle.loads(data)
    except Exception:
        return pickle.dumps((RuntimeError(text or f"{result!r} cannot be sent"), text))
    return data
