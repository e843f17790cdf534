"""Tensors that one rank sends to another, or to all, in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from batteries.distributed._agreement import Transfer
from batteries.distributed._messages import transport_device


def send(transfer: Transfer, data: Tensor, src: int, dst: int | None = None) -> Callable[[], None]:
    """Begin to send a tensor from rank `src` to rank `dst`, or to all; these ranks call it.

    Args:
        data: The tensor of rank `src`. On the other ranks, the memory for it.

    Returns:
        A function that waits until the data has arrived, or raises and names the missing rank.
    """
    ranks = transfer.ranks
    group, sends = ranks.group, ranks.rank == src
    if not data.numel():
        return lambda: None
    # A copy only if the data is on the CPU and nccl is the group's only backend.
    carrier = data if data.is_cuda else data.to(transport_device(group))
    with transfer.sending():
        if dst is None:
            work = dist.broadcast(carrier, group_src=src, group=group, async_op=True)
        elif sends:
            work = dist.isend(carrier, group_dst=dst, group=group)
        else:
            work = dist.irecv(carrier, group_src=src, group=group)

    def arrive() -> None:
        with transfer.sending():
            posted = dst is not None and carrier.device.type == "cpu"
            transfer.wait(_Posted(work) if posted else work, carrier.device, carrier)
        if carrier is not data and not sends:
            data.copy_(carrier)

    return arrive


class _Posted:
    """A message that can tell whether it is complete.

    A message of gloo cannot, and a wait for it that times out closes all connections of the group.
    """

    def __init__(self, work: Any) -> None:
        self._work = work
        self._errors: list[RuntimeError] = []
        self._thread = threading.Thread(target=self._run, name="message", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work.wait()
        except RuntimeError as error:
            self._errors.append(error)

    def is_completed(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, limit: timedelta | None = None) -> None:
        self._thread.join(None if limit is None else limit.total_seconds())
        if self._errors:
            raise self._errors[0]
