"""What one rank sends to another, or to all, while both do something else."""

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
    """Begin to bring a tensor from one rank to another, or to all; the ranks concerned call it.

    Args:
        data: What the rank `src` sends; elsewhere the memory that it comes into.

    Returns:
        To be called before the data is used: it waits until all is there, or says who left.
    """
    ranks = transfer.ranks
    group, sends = ranks.group, ranks.rank == src
    if not data.numel():
        return lambda: None
    # The same, unless it lies on the CPU and the group has nccl alone.
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
    """A message that was sent or asked for, and can say whether it is through.

    Gloo's own cannot, and a wait for it that ends early closes the whole group's connections.
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
        """Whether it is through, or has failed."""
        return not self._thread.is_alive()

    def wait(self, limit: timedelta | None = None) -> None:
        """Wait for it, or for a moment."""
        self._thread.join(None if limit is None else limit.total_seconds())
        if self._errors:
            raise self._errors[0]
