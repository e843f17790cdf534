"""Gathering predictions of several processes: how long it takes, and how much memory."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from measure import Timings, peer, print_table, report
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from batteries import Predictions, distributed

TURNS = 9
ROWS = 1_000_000  # of each of two processes
FEW = 300
MANY = 25_000_000  # of each of four


def on_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> Any:
    """What a function returned on rank 0 of a group on this machine."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "batteries.predictions", "batteries.distributed"])
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    results = context.SimpleQueue()
    ranks = [
        context.Process(target=_run, args=(rank, world_size, store.port, results, function, *args))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    result = results.get()
    for process in ranks:
        process.join()
    return result


def _run(
    rank: int, world_size: int, port: int, results: Any, function: Callable[..., Any], *args: Any
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    with distributed.setup():
        result = function(*args)
    if rank == 0:
        results.put(result)


def timed(size: int, ragged: bool) -> Timings:
    """Microseconds of each way to gather a float32 and an int64 for each row."""
    rank = distributed.rank()
    rows = size + (2 * rank - 1) * (size // 5) * ragged
    scores, targets = torch.rand(rows), torch.arange(rows)
    rooms = [torch.empty(2 * size), torch.empty(2 * size, dtype=torch.int64)]
    outputs = Predictions(2 * size)
    if ragged:
        outputs.add(
            range(rank * (2 * size - rows), 2 * size if rank else rows), s=scores, t=targets
        )
    else:
        outputs.add(range(rank, 2 * size, 2), s=scores, t=targets)
    shuffled = Predictions(2 * size)
    order = torch.randperm(2 * size, generator=torch.Generator().manual_seed(0))
    mine = order[:rows] if rank == 0 else order[2 * size - rows :]
    shuffled.add(mine, s=scores, t=targets)
    objects: list[Any] = [None, None]

    def bare() -> None:
        dist.all_gather_into_tensor(rooms[0], scores)
        dist.all_gather_into_tensor(rooms[1], targets)

    def into_fresh_memory() -> None:
        dist.all_gather_into_tensor(torch.empty(2 * size), scores)
        dist.all_gather_into_tensor(torch.empty(2 * size, dtype=torch.int64), targets)

    contenders: dict[str, Callable[[], object] | None] = {
        "all_gather_into_tensor, bare": None if ragged else bare,
        "the same into fresh memory": None if ragged else into_fresh_memory,
        "Predictions.gather, in order": outputs.gather,
        "Predictions.gather, shuffled": shuffled.gather,
        "all_gather_object": lambda: dist.all_gather_object(objects, (scores, targets)),
        **{name: call and (lambda call=call: [call(scores), call(targets)])
           for name, call in peers(ragged).items()},
    }  # fmt: skip
    times: Timings = {name: call and [] for name, call in contenders.items()}
    for turn in range(TURNS + 2):
        for name, call in contenders.items():
            taken = times[name]
            if call is None or taken is None:
                continue
            dist.barrier()
            begun = time.perf_counter()
            call()
            dist.barrier()  # until the last one has it
            if turn >= 2:
                taken.append((time.perf_counter() - begun) * 1e6)
    return times


def peers(ragged: bool) -> dict[str, Any]:
    """How other libraries gather a tensor; those that pad for ragged ones are asked to."""
    found: dict[str, Any] = {"accelerate": None, "Lightning Fabric": None, "torchmetrics": None}
    accelerate = peer("accelerate")
    if accelerate is not None:
        accelerator, utils = accelerate.Accelerator(cpu=True), accelerate.utils
        found["accelerate"] = (
            (lambda x: utils.gather(utils.pad_across_processes(x)))
            if ragged
            else accelerator.gather
        )
    fabric = peer("lightning.fabric")
    if fabric is not None and not ragged:
        launched = fabric.Fabric(accelerator="cpu", devices=2, strategy="ddp")
        launched.launch()
        found["Lightning Fabric"] = launched.all_gather
    metrics = peer("torchmetrics.utilities.distributed")
    if metrics is not None:
        found["torchmetrics"] = metrics.gather_all_tensors
    return found


def peak_memory() -> float:
    """The memory that gathering on rank 0 added at its peak, in bytes for each byte gathered."""
    rank, world_size = distributed.rank(), distributed.world_size()
    before = peak()
    outputs, batch = Predictions(world_size * MANY), MANY // 100
    for start in range(0, MANY, batch):
        rows = range(start * world_size + rank, (start + batch) * world_size, world_size)
        outputs.add(rows, score=torch.ones(batch))
    outputs.gather(dst=0)
    return (peak() - before) / (world_size * MANY * 4)


def peak() -> int:
    """Bytes; getrusage has those of the parent too, from before the program began."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> None:
    equal, ragged = on_ranks(timed, 2, ROWS, False), on_ranks(timed, 2, ROWS, True)
    bare = "all_gather_into_tensor, bare"
    report(
        "predictions: 1e6 rows of float32 and int64 from each of 2 ranks",
        equal,
        reference=bare,
        unit="ms",
    )
    rows = [["ragged, 0.8e6 and 1.2e6 rows", "median, ms", "against equal"]]
    for name, times in ragged.items():
        if times and equal[name]:
            same = median(equal[name] or [0])
            rows.append([name, f"{median(times) / 1e3:.2f}", f"{median(times) / same:.2f}"])
    print()
    print_table(rows)
    few, title = on_ranks(timed, 2, FEW, False), f"predictions: {FEW} rows"
    report(title, few, reference="all_gather_object", unit="ms")
    print("\n### predictions: 1e8 float32 from 4 processes to rank 0\n")
    print_table([["peak memory added on rank 0, of their size", f"{on_ranks(peak_memory, 4):.2f}"]])
