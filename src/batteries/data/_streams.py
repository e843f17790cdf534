"""Iterable datasets: divided among ranks and workers, seeded, and resumed if they have a state."""

from __future__ import annotations

import copy
import inspect
import io
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from batteries._foreign import values_in
from batteries._seeding import isolated_rng, rekey
from batteries.data._carried import Orders
from batteries.data._failing import Failed, called, say_where, stopped
from batteries.data._workers import asked, change_worker, leaked_by, sendable
from batteries.distributed._groups import Group, Ranks, ranks_of

_ITEM, _BEGIN = 4, 6  # the uses of keys
_SPACING = 20  # pause between two states of the dataset, in multiples of the time that one takes
# The place of a worker: its number, the items it read, whether it has read all, and whether the
# dataset was seen to divide itself. Also a state of the dataset, after `since` items.
Part = dict[str, Any]


class Stream(IterableDataset[Any]):
    """The part of an iterable dataset that this rank and worker reads."""

    def __init__(
        self, dataset: IterableDataset[Any], sharded: bool | str | None, group: Group
    ) -> None:
        if sharded not in (None, False, True, "workers", "ranks"):
            raise ValueError(
                f"sharded is {sharded!r}; expected True, False, 'workers', 'ranks' or None"
            )
        self.dataset = dataset
        self._seed = 0
        self._sharded = sharded
        self._of = group
        self._rank, self._world_size = 0, 1
        self._epoch = -2  # of the last pass; before the first one, no epoch comes next
        self._parts: list[Part] = []  # where the workers of the last pass began
        self._again = False  # whether the last pass was resumed
        self._own = sharded in (True, "workers")  # whether the workers yield different items
        self._part: Part = {}  # this worker's place
        self._begun: Any = None  # the dataset's state at the beginning of a pass, until its end
        self._due = 0.0  # the time of the next state
        self.lasts = False  # whether the process that reads it reads the next pass, too

    def begin(self, epoch: int, parts: list[Part], seed: int) -> bool:
        """Prepare the pass of an epoch; return whether running workers would begin there, too.

        Raises:
            ValueError: There are several ranks, and `sharded` was not passed.
        """
        again = parts != fresh_parts(len(parts))
        known = (epoch, seed) == (self._epoch + 1, self._seed) and not (again or self._again)
        self._seed = seed
        self._rank, self._world_size, _ = self._ranks()
        if self._world_size > 1 and self._sharded is None:
            raise ValueError(
                f"{self._name} is an iterable dataset that {self._world_size} ranks read, and "
                f"sharded does not say which part each rank gets. {_CHOICES}"
            )
        self._epoch, self._parts, self._again = epoch, parts, again
        return known

    @property
    def _name(self) -> str:
        return type(self.dataset).__name__

    @property
    def by_ranks(self) -> bool:
        """Whether the ranks yield different parts."""
        return self._sharded in (True, "ranks")

    def _ranks(self) -> Ranks:
        return ranks_of(self._of)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_of": None}  # a worker has no process group

    # ---------------------------------------------------------------- in a worker

    def begin_worker(self, then: Callable[[int], None] | None, number: int) -> None:
        """Call the user's `worker_init_fn`, which may divide the dataset, as in torch's manual."""
        # After resuming, the first worker may go on at the place of the third.
        info: Any = get_worker_info()
        own, workers = self._parts[number]["worker"], info.num_workers
        change_worker(id=own, seed=info.seed - number + own, dataset=self.dataset)
        asked.clear()
        if then is not None:
            then(own)
        if self._sharded is None and workers > 1 and "dataset" in asked:
            if "num_workers" not in asked:
                raise ValueError(
                    f"worker_init_fn reads {self._name} from get_worker_info(), so it may have "
                    f"given each worker a part of it. {_CHOICES}"
                )
            self._own = True

    def __iter__(self) -> Iterator[Any]:
        """The items of this part; an item that cannot be read is a `Failed`."""
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        self._part = part = next(dict(part) for part in self._parts if part["worker"] == number)
        own = self._own or part.get("own", False)
        self._due = 0
        epoch = self._epoch
        self._epoch += 1  # a persistent worker gets no other sign of the next pass
        asked.clear()
        # The same key for all ranks and workers, because `__iter__` may shuffle at once.
        rekey(_BEGIN, self._seed, epoch)
        orders = Orders(self.dataset) if self.lasts else None
        items, known = self._items(part, epoch), part["items"]
        part["items"] = part.get("since", known)
        last, first = None, True
        while True:
            # Ranks and workers that read the same items have the same key. Before the first item,
            # all have the same key: a dataset may shuffle there what it then divides among workers.
            key = (self._rank * self.by_ranks * workers + number * own) if part["items"] else 0
            rekey(_ITEM, self._seed, epoch, key, part["items"])
            failed = None
            try:
                item = next(items)
            except StopIteration as end:
                culprit = leaked_by(end)
                if culprit is None:
                    part["ended"], self._begun = True, None
                    self._look_at(orders, epoch)
                    if last is not None:
                        yield last
                    return
                failed = Failed(stopped(f"{culprit}, which makes the items of {self._name},"))
            except Exception as error:
                say_where(error, f"item {part['items']} of {self._name}")
                failed = Failed(error)
            if self._sharded is None and workers > 1 and not own and asked & {"id", "num_workers"}:
                self._check_asked(part["items"])
                own = part["own"] = True
            if first:
                first = False
                self._look_at(orders, epoch)
            ranks = 1 if self.by_ranks else self._world_size
            shards = ranks * (1 if own else workers)
            shard = (0 if self.by_ranks else self._rank) * (1 if own else workers)
            shard += 0 if own else number
            part["items"] += 1
            last = None
            if part["items"] > known:  # items up to `known` are skipped
                if (part["items"] - 1) % shards == shard:
                    yield item if failed is None else failed
                else:
                    last = failed  # if this error ends the stream, all ranks and workers yield it
            asked.clear()

    def _look_at(self, orders: Orders | None, epoch: int) -> None:
        """Warn, once, of a list that this pass has reordered for the next one."""

        def begin(dataset: Any) -> None:
            with isolated_rng():
                rekey(_BEGIN, self._seed, epoch)
                if hasattr(dataset, "set_epoch"):
                    dataset.set_epoch(epoch)
                items = iter(dataset)
                rekey(_ITEM, self._seed, epoch, 0, 0)
                next(items, None)

        if self.lasts and orders is not None:
            self.lasts = not orders.warn_of_change(begin)

    def _items(self, part: Part, epoch: int) -> Iterator[Any]:
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        part, dataset = thawed(part), self.dataset
        if "dataset" in part:
            dataset.load_state_dict(part["dataset"])  # type: ignore[attr-defined]
            # In some datasets, the state after the last item begins the next pass. Other datasets
            # have to end this pass first.
            if part["ended"] and [*islice(dataset, 1)]:
                dataset.load_state_dict(part["dataset"])  # type: ignore[attr-defined]
        elif remembers(dataset):
            if self._begun is not None:  # the loop has left that pass
                dataset.load_state_dict(self._begun)  # type: ignore[attr-defined]
            with suppress(Exception):  # of datasets without a state before the first item
                self._begun = copy.deepcopy(dataset.state_dict())  # type: ignore[attr-defined]
        return iter(dataset) if not part["ended"] else iter(())

    def _check_asked(self, items: int) -> None:
        """Raise if a dataset that reads `get_worker_info` may or may not divide itself."""
        if not items and asked >= {"id", "num_workers"}:
            return
        when = f" after {items} item{'s' * (items > 1)}" if items else ""
        names = " and ".join(sorted(asked & {"id", "num_workers"}))
        raise ValueError(
            f"{self._name} reads {names} of get_worker_info(){when}. It is not clear whether it "
            f"gives each worker a different part. {_CHOICES}"
        )

    def collated(self, collate: Callable[[Any], Any], items: Any) -> tuple[Any, Part]:
        """A batch or its error, with the worker's place after it, because workers read ahead.

        A state of the dataset is taken from time to time. A run that resumes reads the items after
        the state again.
        """
        failed = [
            item
            for item in [items, *(items if type(items) is list else ())]
            if isinstance(item, Failed)
        ]
        try:
            batch = sendable(failed[0]) if failed else called("collate_fn", collate, items)
        except Exception as error:
            batch = sendable(Failed(error))
        part = {name: self._part[name] for name in self._part if name not in _STATE}
        now = time.perf_counter()
        if remembers(self.dataset) and (now >= self._due or part["ended"]):
            # As bytes: each tensor would need a file descriptor on its way to the program.
            state = self.dataset.state_dict()  # type: ignore[attr-defined]
            torch.save(state, frozen := io.BytesIO())
            part.update(frozen=frozen.getvalue(), since=part["items"])
            after = time.perf_counter()
            self._due = after + _SPACING * (after - now)
        return batch, part

    # ---------------------------------------------------------------- resuming

    def checked(self, state: dict[str, Any], workers: int) -> list[Part]:
        """The workers' parts of a state; raise if this stream cannot resume from them."""
        self.check_memory()
        name, own, told = self._name, self._ranks()[:2], "DataLoader.state_dict"
        rank, ranks, parts = values_in(state, told, "rank", "ranks", "workers")
        if (rank, ranks) != own:
            raise ValueError(
                f"the state is that of rank {rank} of {ranks}, and this is rank "
                f"{own[0]} of {own[1]}, but each rank has its own place in {name}: start as many "
                "ranks, and save and load the loader as loader=PerRank(loader)"
            )
        if len(parts) != workers:
            raise ValueError(
                f"{name} was read by {len(parts)} workers (num_workers=0 counts as 1), "
                f"and there are {workers}, but each worker has its own place in it: use as many "
                "workers as before to resume in the middle of an epoch"
            )
        numbers = [values_in(part, told, "worker", "items", "ended")[0] for part in parts]
        if {*numbers} != {*range(workers)}:
            raise ValueError(f"the state has workers {numbers}; expected 0 to {workers - 1}")
        return parts  # type: ignore[no-any-return]

    def check_memory(self) -> None:
        """Raise if the dataset has no state to resume from."""
        if not remembers(self.dataset):
            raise ValueError(
                f"{self._name} has no load_state_dict(state), or no state_dict() without "
                "arguments, so it cannot resume in the middle of an epoch: give it both methods, "
                "or save at the end of epochs"
            )


_STATE = {"dataset", "frozen", "since"}
_CHOICES = (
    "Pass sharded=False if every rank and worker yields all items (the loader divides them), "
    "sharded='workers' if only the workers of a rank yield different items (Hugging Face's "
    "IterableDataset, and datasets that read get_worker_info), sharded='ranks' if only the ranks "
    "do, sharded=True if both do"
)


def fresh_parts(workers: int) -> list[Part]:
    """The places at which the workers of a new pass begin."""
    return [{"worker": worker, "items": 0, "ended": False} for worker in range(workers)]


def followed(parts: list[Part], part: Part) -> list[Part]:
    """The parts after a worker has moved on. Its part goes to the end: its next turn comes last."""
    before = next(other for other in parts if other["worker"] == part["worker"])
    if "since" not in part:
        part = {**part, **{name: before[name] for name in _STATE if name in before}}
    return [*(other for other in parts if other is not before), part]


def remembers(thing: Any) -> bool:
    """Whether an object has `state_dict()` and `load_state_dict(state)` with these arguments.

    Some datasets have a `state_dict` that needs the loop's position. They do not count.
    """
    return _takes(thing, "state_dict") and _takes(thing, "load_state_dict", {})


def _takes(thing: Any, name: str, *arguments: Any) -> bool:
    method = getattr(thing, name, None)
    if not callable(method):
        return False
    try:
        inspect.signature(method).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def thawed(part: Part) -> Part:
    """A part in which the dataset's state is an object, not bytes."""
    if "frozen" not in part:
        return part
    # From our own worker, so it may have any values.
    state = torch.load(io.BytesIO(part["frozen"]), weights_only=False, mmap=False)
    return {**{n: value for n, value in part.items() if n != "frozen"}, "dataset": state}
