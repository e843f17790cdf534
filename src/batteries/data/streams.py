"""Iterable datasets: divided among ranks and workers, seeded, and resumed where they can be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from batteries import distributed
from batteries.seeding import rekey

_ITEM = 4  # what a key is for


class Stream(IterableDataset[Any]):
    """An iterable dataset of which this rank and worker takes its part.

    >>> class Numbers(IterableDataset):
    ...     def __iter__(self):
    ...         return iter(range(3))
    >>> list(Stream(Numbers(), seed=42, sharded=False))
    [0, 1, 2]
    """

    def __init__(self, dataset: IterableDataset[Any], seed: int, sharded: bool) -> None:
        self._dataset = dataset
        self._seed = seed
        self._sharded = sharded
        self._rank, self._world_size = 0, 1
        self._epoch = 0
        self._done = 0  # items taken from the dataset
        self._resumed = False

    def begin(self, epoch: int) -> None:
        """Let the next pass be that of an epoch."""
        self._rank, self._world_size = distributed.rank(), distributed.world_size()
        self._epoch = epoch
        self._done = self._done if self._resumed else 0
        self._resumed = False

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        shards, shard = self._world_size * workers, self._rank * workers + worker_id
        epoch = self._epoch
        self._epoch += 1  # a persistent worker is told of no other
        if hasattr(self._dataset, "set_epoch"):
            self._dataset.set_epoch(epoch)
        items = iter(self._dataset)
        while True:
            part = shard if self._sharded else 0  # alike for all, who must see the same items
            rekey(_ITEM, self._seed, epoch, part, self._done)
            try:
                item = next(items)
            except StopIteration:
                self._done = 0
                return
            self._done += 1
            if self._sharded or (self._done - 1) % shards == shard:
                yield item

    def state_dict(self) -> dict[str, Any]:
        """Where the dataset is, if it says so."""
        state: dict[str, Any] = {"items": self._done}
        if hasattr(self._dataset, "state_dict"):
            state["dataset"] = self._dataset.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any], num_workers: int) -> None:
        """Go on in the middle of a pass.

        Raises:
            ValueError: The dataset cannot; it says why.
        """
        if state["position"] == 0:
            return
        name = type(self._dataset).__name__
        if not hasattr(self._dataset, "load_state_dict"):
            raise ValueError(
                f"{name} has no load_state_dict: an iterable dataset without a memory cannot go on "
                "in the middle of an epoch; give it state_dict and load_state_dict, or save at the "
                "end of epochs"
            )
        if num_workers:
            raise ValueError(
                f"{name} was read ahead by {num_workers} workers, so its state is not that of the "
                "loop: use num_workers=0 to go on in the middle of an epoch"
            )
        self._dataset.load_state_dict(state["dataset"])
        self._done = state["items"]
        self._resumed = True
