"""The batches that a pass requests from torch's loader, and the end of a pass with the program."""

from __future__ import annotations

import functools
import itertools
import os
import weakref
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset

from batteries._processes import call_at_end


class Arrival(NamedTuple):
    """A batch and its place in the epoch.

    >>> Arrival(batch="images", indices=[3, 1], start=0, stop=4).indices
    [3, 1]

    Attributes:
        batch: The batch, or a `Failed`.
        indices: The indices of its samples in the dataset; empty for a stream.
        start: The first position of the step in the order of the epoch, over all ranks. For a
            stream, the number of batches before this one.
        stop: The position after the step.
        part: The state of the worker's stream, or of the sampler, after this batch.
        turn: The number of the round through the data. It is the epoch, unless the loader has
            `batches_per_pass`.
        done: The number of batches of the pass, including this one.
        of: The pass, for the loader itself.
    """

    batch: Any
    indices: list[Any]
    start: int
    stop: int
    part: Any = None
    turn: int = 0
    done: int = 0
    of: Any = None


class Plan:
    """The batches that a pass requests: those awaited, and some after them."""

    def __init__(self, steps: Generator[tuple[Any, Arrival], None, None] | None = None) -> None:
        self._steps = (_ for _ in ()) if steps is None else steps
        self._ahead: deque[tuple[Any, Arrival]] = deque()
        self.awaited: deque[Arrival] = deque()
        self.broken = False  # after an error of the sampler the next batches are not known

    def __reduce__(self) -> Any:  # a copy of a loader is not in a pass
        return Plan, ()

    def __iter__(self) -> Plan:
        return self

    def __next__(self) -> Any:
        ask, arrival = self._ahead.popleft() if self._ahead else self._step()
        self.awaited.append(arrival)
        return ask

    def _step(self) -> tuple[Any, Arrival]:
        try:
            return next(self._steps)
        except StopIteration:
            raise
        except BaseException:
            self.broken = True
            raise

    def next_steps(self, count: int) -> list[Arrival]:
        """The next arrivals: `count` of them, or all that are left."""
        with suppress(StopIteration):
            while len(self.awaited) + len(self._ahead) < count:
                self._ahead.append(self._step())
        ahead = (arrival for _, arrival in self._ahead)
        return list(itertools.islice(itertools.chain(self.awaited, ahead), count))

    def close(self) -> None:
        self._steps.close()
        self._ahead.clear()


class Asked:
    """The batch sampler of torch's loader; it yields the requests of the pass under way."""

    def __init__(self) -> None:
        self.plan = Plan()

    def __iter__(self) -> Iterator[Any]:
        return self.plan


_BORROWED = (
    "a batteries.data.DataLoader computes its own order, and divides it among the ranks. A loader "
    "that another library makes from this sampler would have another order. Iterate over the "
    "loader itself; to go on in the middle of an epoch, load its state"
)


class _Borrowed(DistributedSampler[Any]):
    """The `sampler` that other libraries see: it cannot be read, and needs no division by ranks."""

    dataset: Any

    def __init__(self, dataset: Any, shuffle: bool) -> None:  # torch's would ask for the length
        self.dataset, self.shuffle = dataset, shuffle
        self.num_replicas, self.rank, self.epoch, self.seed, self.drop_last = 1, 0, 0, 0, False

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Any]:
        raise TypeError(_BORROWED)


class _BorrowedBatches(BatchSampler):
    """The `batch_sampler` that other libraries see."""

    def __iter__(self) -> Iterator[Any]:
        raise TypeError(_BORROWED)


def shown_to_torch(
    dataset: Any, shuffle: bool | None, sampler: Any, batch_sampler: Any
) -> tuple[bool | None, Any]:
    """The arguments `shuffle` and `sampler` for torch's class, which never reads the sampler."""
    own = sampler is not None or batch_sampler is not None
    if own or isinstance(dataset, IterableDataset):
        return shuffle, sampler
    return None, _Borrowed(dataset, bool(shuffle))


def hide_batches_of(loader: DataLoader[Any], own: Any) -> None:
    """Let no library read the order from torch's `batch_sampler`; the user's own one stays."""
    if own is None and loader.batch_sampler is not None:
        shown = _BorrowedBatches(loader.sampler, loader.batch_size or 1, loader.drop_last)
        vars(loader)["batch_sampler"] = shown  # torch refuses to set this attribute


@functools.cache
def ended_at_exit(pid: int) -> weakref.WeakSet[Any]:
    """The passes with workers. When the program ends, their workers are ended.

    Workers ignore SIGTERM, so Python would wait for them for ever. The workers must be ended before
    torch's own function for the end runs. A forked process does not end its parent's workers.
    """
    passes: weakref.WeakSet[Any] = weakref.WeakSet()

    def end() -> None:
        for workers in list(passes) if os.getpid() == pid else ():
            workers._shutdown_workers()

    call_at_end(end)
    return passes
