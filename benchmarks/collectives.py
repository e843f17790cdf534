"""The cost of collectives whose ranks compare their calls, and of ranks that watch their store."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from measure import print_table
from predictions import on_ranks
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from batteries import distributed
from batteries._preemption import NEVER, _decide
from batteries.distributed._waiting import seconds_between

TURNS = 7
WORLDS = (2, 8, 32, 64)
MANY = 4096  # simulated ranks
CONNECTIONS = 64  # of them to the store
CLIENTS = 2  # processes


def on_loopback() -> int:
    """Bytes that all programs of this machine have sent to it."""
    [line] = [each for each in Path("/proc/net/dev").read_text().splitlines() if " lo:" in each]
    return int(line.split()[9])


def timed() -> dict[str, tuple[float, float]]:
    """Milliseconds and bytes of a call among all ranks, for each kind."""
    three = torch.ones(3)
    rooms: list[Any] = [None] * distributed.world_size()
    calls: dict[str, Callable[[], object]] = {
        "barrier, bare": dist.barrier,
        "barrier": distributed.barrier,
        "all_reduce of three numbers, bare": lambda: dist.all_reduce(three.clone()),
        "all_reduce of three numbers": lambda: distributed.all_reduce(three),
        "all_gather_object, bare": lambda: dist.all_gather_object(rooms, {"loss": 0.5}),
        "all_gather of the same": lambda: distributed.all_gather({"loss": 0.5}),
        "broadcast_object_list, bare": lambda: dist.broadcast_object_list([{"loss": 0.5}], src=0),
        "broadcast of the same": lambda: distributed.broadcast({"loss": 0.5}),
    }
    number = max(4, 200 // distributed.world_size())
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            call()
            dist.barrier()
            begun, before = time.perf_counter(), on_loopback()
            for _ in range(number):
                call()
            seconds = time.perf_counter() - begun
            dist.barrier()
            sent = on_loopback() - before
            times[name].append((seconds / number * 1e3, sent / number))
    return {
        name: (median(ms for ms, _ in found), median(sent for _, sent in found))
        for name, found in times.items()
    }


def compared() -> None:
    """Real ranks of gloo, as many as the machine can hold."""
    print("\n### collectives of real ranks\n")
    head = ["", *(f"{n} ranks, ms" for n in WORLDS), *(f"{n} ranks, bytes" for n in WORLDS)]
    found = [on_ranks(timed, world_size) for world_size in WORLDS]
    rows = []
    for name in found[0]:
        times, sent = zip(*(each[name] for each in found), strict=True)
        rows.append([name, *(f"{ms:.2f}" for ms in times), *(f"{number:,.0f}" for number in sent)])
    print_table([head, *rows])


# ---------------------------------------------------------------- simulated ranks


def serve(pipe: Any) -> None:
    """A store in a process of its own, which tells how long it has computed."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipe.send(store.port)
    while pipe.recv():
        pipe.send(time.process_time())


def listen(port: int, first: int, stops: Any) -> None:
    """So many ranks, each with a guard's questions; they share connections."""
    each = MANY // CLIENTS // CONNECTIONS

    def ranks(begin: int) -> None:
        store = PrefixStore(
            "preemption/1",
            TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60)),
        )
        pause, told = seconds_between(MANY), set[int]()
        while len(told) < each:
            for rank in range(begin, begin + each):
                begun = time.monotonic()
                if rank not in told and store.check(["told"]):
                    store.set(f"offer/{rank}", "1")
                    told.add(rank)
                time.sleep(max(0.0, pause / each - (time.monotonic() - begun)))
        if begin == 0:
            offers = [f"offer/{rank}" for rank in range(MANY)]
            while not store.check(offers):
                time.sleep(0.02)
            _decide(store, max(int(store.get(offer)) for offer in offers))
        while not store.check(["last"]):
            time.sleep(seconds_between(MANY, 0.08) / 4 / each)
        assert _decide(store, NEVER) == 1
        stops.put(time.monotonic())

    threads = [
        threading.Thread(target=ranks, args=(first + number * each,))
        for number in range(CONNECTIONS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def watched() -> None:
    """The requests of the ranks of a job that is too large for this machine."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    stops = context.Queue()
    server = context.Process(target=serve, args=(theirs,))
    server.start()
    port = ours.recv()
    clients = [
        context.Process(target=listen, args=(port, number * MANY // CLIENTS, stops))
        for number in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    time.sleep(10)  # they have begun
    used = []
    for _ in range(2):
        ours.send(True)
        used.append((ours.recv(), time.monotonic()))
        time.sleep(20)
    share = (used[1][0] - used[0][0]) / (used[1][1] - used[0][1])
    store = PrefixStore("preemption/1", TCPStore("127.0.0.1", port, is_master=False))
    begun = time.monotonic()
    store.set("told", "")
    last = max(stops.get() for _ in range(CLIENTS * CONNECTIONS)) - begun
    ours.send(False)
    for process in (server, *clients):
        process.join()
    print(f"\n### {MANY:,} simulated ranks and their store\n")
    head = ["", "the store's share of a core", "until all know where to stop, s"]
    print_table([head, ["PreemptionGuard", f"{share:.3f}", f"{last:.1f}"]])


def main() -> None:
    compared()
    watched()


if __name__ == "__main__":
    main()
