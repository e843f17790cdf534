"""Iterable datasets: divided among ranks and workers, seeded, and resumed where they can be."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from batteries.distributed.groups import Group, Ranks, ranks_of
from batteries.seeding import rekey

_ITEM = 4  # what a key is for
Part = dict[str, Any]  # where a worker is: which it is, the items it read, whether that was all


class Stream(IterableDataset[Any]):
    """An iterable dataset of which this rank and worker takes its part.

    >>> class Numbers(IterableDataset):
    ...     def __iter__(self):
    ...         return iter(range(3))
    >>> stream = Stream(Numbers(), seed=42, sharded=False)
    >>> stream.begin(0, fresh_parts(1))
    True
    >>> list(stream)
    [0, 1, 2]
    """

    def __init__(
        self, dataset: IterableDataset[Any], seed: int, sharded: bool, group: Group = None
    ) -> None:
        self._dataset = dataset
        self._seed = seed
        self._sharded = sharded
        self._of = group
        self._rank, self._world_size = 0, 1
        self._epoch = -1  # of the pass last begun
        self._parts: list[Part] = []  # where its workers begin
        self._again = False  # in the middle of it
        self._part: Part = {}  # where this worker is

    def begin(self, epoch: int, parts: list[Part]) -> bool:
        """Let the next pass be that of an epoch; whether workers of the last one know that."""
        again = parts != fresh_parts(len(parts))
        known = epoch == self._epoch + 1 and not (again or self._again)
        self._rank, self._world_size, _ = self._ranks()
        self._epoch, self._parts, self._again = epoch, parts, again
        return known

    def _ranks(self) -> Ranks:
        return ranks_of(self._of)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_of": None}  # a worker has no process group

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        self._part = part = dict(self._parts[number])
        if worker:  # the first may go on where the third was, whose turn it is
            object.__setattr__(worker, "id", part["worker"])
        shards, shard = self._world_size * workers, self._rank * workers + part["worker"]
        epoch = self._epoch
        self._epoch += 1  # a persistent worker is told of no other
        if hasattr(self._dataset, "set_epoch"):
            self._dataset.set_epoch(epoch)
        if "dataset" in part:
            self._dataset.load_state_dict(part["dataset"])  # type: ignore[attr-defined]
        items = iter(self._dataset) if not part["ended"] else iter(())
        while True:
            key = shard if self._sharded else 0  # alike for all, who must see the same items
            rekey(_ITEM, self._seed, epoch, key, part["items"])
            try:
                item = next(items)
            except StopIteration:
                part["ended"] = True
                return
            part["items"] += 1
            if self._sharded or (part["items"] - 1) % shards == shard:
                yield item

    def collated(self, collate: Callable[[Any], Any], items: Any) -> tuple[Any, Part]:
        """A batch, and where the dataset is when it was read: a worker goes on to read ahead."""
        batch, part = collate(items), dict(self._part)
        if hasattr(self._dataset, "state_dict"):
            part["dataset"] = copy.deepcopy(self._dataset.state_dict())
        return batch, part

    def check(self, state: dict[str, Any], workers: int) -> None:
        """Whether this stream can go on in the middle of a pass.

        Raises:
            ValueError: It cannot; the message says why.
        """
        name = type(self._dataset).__name__
        if not hasattr(self._dataset, "load_state_dict"):
            raise ValueError(
                f"{name} has no load_state_dict: an iterable dataset without a memory cannot go on "
                "in the middle of an epoch; give it state_dict and load_state_dict, or save at the "
                "end of epochs"
            )
        own = self._ranks()[:2]
        if (state["rank"], state["ranks"]) != own:
            raise ValueError(
                f"the state is that of rank {state['rank']} of {state['ranks']}, and this is rank "
                f"{own[0]} of {own[1]}: each has its own place in {name}; start as many ranks, and "
                "save and load the loader as loader=PerRank(loader)"
            )
        if len(state["workers"]) != workers:
            raise ValueError(
                f"{name} was read by {len(state['workers'])} workers (one is the program itself), "
                f"and there are {workers}: each has its own place in it; use as many to go on in "
                "the middle of an epoch"
            )


def fresh_parts(workers: int) -> list[Part]:
    """Where the workers of a pass begin.

    >>> fresh_parts(1)
    [{'worker': 0, 'items': 0, 'ended': False}]
    """
    return [{"worker": worker, "items": 0, "ended": False} for worker in range(workers)]
