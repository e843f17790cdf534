"""Iterable datasets: divided among ranks and workers, seeded, and resumed where they can be."""

from __future__ import annotations

import inspect
import io
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

import torch
from torch.utils.data import IterableDataset, get_worker_info

from batteries._seeding import rekey
from batteries.data._failing import Failed, say_where
from batteries.data._workers import (
    asked,
    change_worker,
    ends_nothing,
    leaked_by,
    sendable,
    stopped,
)
from batteries.distributed._groups import Group, Ranks, ranks_of

_ITEM = 4  # what a key is for
_SPACING = 20  # a state is taken again after so many times the time that it took
# Where a worker is: which it is, the items it read, whether that was all, whether it was found to
# divide the dataset itself; and a state of the dataset, after as many items as `since` says.
Part = dict[str, Any]
Sharded: TypeAlias = bool | Literal["workers", "ranks"] | None


class Stream(IterableDataset[Any]):
    """An iterable dataset of which this rank and worker takes its part."""

    def __init__(
        self,
        dataset: IterableDataset[Any],
        seed: int,
        sharded: Sharded = None,
        group: Group = None,
    ) -> None:
        if sharded not in (None, False, True, "workers", "ranks"):
            raise ValueError(
                f"sharded is {sharded!r}; expected True, False, 'workers', 'ranks' or None"
            )
        self.dataset = dataset
        self._seed = seed
        self._sharded = sharded
        self._of = group
        self._rank, self._world_size = 0, 1
        self._epoch = -1  # of the pass last begun
        self._parts: list[Part] = []  # where its workers begin
        self._again = False  # in the middle of it
        self._own = sharded in (True, "workers")  # whether its workers divide it
        self._part: Part = {}  # where this worker is
        self._due = 0.0  # when its state is taken again

    def begin(self, epoch: int, parts: list[Part], seed: int | None = None) -> bool:
        """Let the next pass be that of an epoch; whether workers of the last one know that.

        Raises:
            ValueError: Whether each rank has a part of its own has to be said.
        """
        again = parts != fresh_parts(len(parts))
        seed = self._seed if seed is None else seed  # another one after a state was loaded
        known = (epoch, seed) == (self._epoch + 1, self._seed) and not (again or self._again)
        self._seed = seed
        self._rank, self._world_size, _ = self._ranks()
        if self._world_size > 1 and self._sharded is None:
            raise ValueError(
                f"{self._name} is an iterable dataset that {self._world_size} ranks read. Say "
                f"which part each of them gets. {_CHOICES}"
            )
        self._epoch, self._parts, self._again = epoch, parts, again
        return known

    @property
    def _name(self) -> str:
        return type(self.dataset).__name__

    def _ranks(self) -> Ranks:
        return ranks_of(self._of)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_of": None}  # a worker has no process group

    # ---------------------------------------------------------------- in a worker

    def begin_worker(self, then: Callable[[int], None] | None, number: int) -> None:
        """What `worker_init_fn` is for: the dataset may be divided there, as torch's pages show."""
        # The first may go on where the third was, whose turn it is.
        info: Any = get_worker_info()
        own, workers = self._parts[number]["worker"], info.num_workers
        change_worker(id=own, seed=info.seed - number + own, dataset=self.dataset)
        asked.clear()
        if then is not None:
            then(own)
        if self._sharded is None and workers > 1 and "dataset" in asked:
            if "num_workers" not in asked:
                raise ValueError(
                    f"worker_init_fn takes {self._name} from get_worker_info(), and may have "
                    f"given each worker a part of it. {_CHOICES}"
                )
            self._own = True

    def __iter__(self) -> Iterator[Any]:
        """The items of this part, and `Failed` where one could not be read."""
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        self._part = part = next(dict(part) for part in self._parts if part["worker"] == number)
        by_ranks = self._sharded in (True, "ranks")
        own = self._own or part.get("own", False)
        self._due = 0
        epoch = self._epoch
        self._epoch += 1  # a persistent worker is told of no other
        asked.clear()
        items, known = self._items(part, epoch), part["items"]
        part["items"] = part.get("since", known)
        last = None
        while True:
            # Alike for all that must see the same items, and for all before the first item: what
            # a dataset that divides itself draws there is the order that it divides.
            key = (self._rank * by_ranks * workers + number * own) if part["items"] else 0
            rekey(_ITEM, self._seed, epoch, key, part["items"])
            failed = None
            try:
                item = next(items)
            except StopIteration as end:
                culprit = leaked_by(end)
                if culprit is None:
                    part["ended"] = True
                    if last is not None:
                        yield last
                    return
                failed = Failed(stopped(f"{culprit}, of which {self._name} makes its items,"))
            except Exception as error:
                say_where(error, f"item {part['items']} of {self._name}")
                failed = Failed(error)
            if self._sharded is None and workers > 1 and not own and asked & {"id", "num_workers"}:
                self._check_asked(part["items"])
                own = part["own"] = True
            ranks = 1 if by_ranks else self._world_size
            shards = ranks * (1 if own else workers)
            shard = (0 if by_ranks else self._rank) * (1 if own else workers)
            shard += 0 if own else number
            part["items"] += 1
            last = None
            if part["items"] > known:  # not on the way to where it was
                if (part["items"] - 1) % shards == shard:
                    yield item if failed is None else failed
                else:
                    last = failed  # all tell of it if it ends the stream
            asked.clear()

    def _items(self, part: Part, epoch: int) -> Iterator[Any]:
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        part = thawed(part)
        if "dataset" in part:
            self.dataset.load_state_dict(part["dataset"])  # type: ignore[attr-defined]
        return iter(self.dataset) if not part["ended"] else iter(())

    def _check_asked(self, items: int) -> None:
        """Whether it is clear that a dataset which asks for its worker divides itself."""
        if items and not self._part.get("own"):
            when = f"after {items} items asks"
        elif not asked >= {"id", "num_workers"}:
            when = "asks"
        else:
            return
        names = " and ".join(sorted(asked & {"id", "num_workers"}))
        raise ValueError(
            f"{self._name} {when} get_worker_info() for its {names}. It is not clear whether it "
            f"gives each worker a part of its own. {_CHOICES}"
        )

    def collated(self, collate: Callable[[Any], Any], items: Any) -> tuple[Any, Part]:
        """A batch or what failed, and where the dataset is then: a worker goes on to read ahead.

        A state of the dataset comes along now and then. To go on, what was read since is read
        again.
        """
        failed = [
            item
            for item in [items, *(items if type(items) is list else ())]
            if isinstance(item, Failed)
        ]
        try:
            with ends_nothing("collate_fn"):
                batch = sendable(failed[0]) if failed else collate(items)
        except Exception as error:
            batch = sendable(Failed(error))
        part = {name: self._part[name] for name in self._part if name not in _STATE}
        now = time.perf_counter()
        if remembers(self.dataset) and (now >= self._due or part["ended"]):
            # Not as it is: each of its tensors would take a file descriptor.
            state = self.dataset.state_dict()  # type: ignore[attr-defined]
            torch.save(state, frozen := io.BytesIO())
            part.update(frozen=frozen.getvalue(), since=part["items"])
            after = time.perf_counter()
            self._due = after + _SPACING * (after - now)
        return batch, part

    # ---------------------------------------------------------------- going on

    def check(self, state: dict[str, Any], workers: int) -> None:
        """Whether this stream can go on in the middle of a pass.

        Raises:
            ValueError: It cannot; the message says why.
        """
        self.check_memory()
        name, own = self._name, self._ranks()[:2]
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

    def check_memory(self) -> None:
        """Whether this stream can begin anywhere but at its start.

        Raises:
            ValueError: It cannot.
        """
        if not remembers(self.dataset):
            raise ValueError(
                f"{self._name} has no load_state_dict, or no state_dict that needs no arguments: "
                "an iterable dataset without a memory cannot go on in the middle of an epoch; give "
                "it state_dict() and load_state_dict(state), or save at the end of epochs"
            )


_STATE = {"dataset", "frozen", "since"}
_CHOICES = (
    "Pass sharded=False if every rank and worker yields all items (they are divided here), "
    "sharded='workers' if the workers of a rank divide them and all ranks do alike (Hugging "
    "Face's IterableDataset, and what asks get_worker_info), 'ranks' if the ranks divide them "
    "and the workers of a rank do not, True if both do"
)


def fresh_parts(workers: int) -> list[Part]:
    """Where the workers of a pass begin."""
    return [{"worker": worker, "items": 0, "ended": False} for worker in range(workers)]


def followed(parts: list[Part], part: Part) -> list[Part]:
    """The parts after one of them has moved on, which is the last to have its next turn."""
    before = next(other for other in parts if other["worker"] == part["worker"])
    if "since" not in part:
        part = {**part, **{name: before[name] for name in _STATE if name in before}}
    return [*(other for other in parts if other is not before), part]


def remembers(thing: Any) -> bool:
    """Whether something has `state_dict()` and `load_state_dict(state)`, to be called just so.

    There are datasets whose `state_dict` needs to be told how far the loop is: it is another one.
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
    except ValueError:  # a builtin that does not say what it takes
        return True
    return True


def thawed(part: Part) -> Part:
    """A part with its dataset's state as the dataset returned it."""
    if "frozen" not in part:
        return part
    state = torch.load(io.BytesIO(part["frozen"]), weights_only=False)  # our own worker's
    return {**{n: value for n, value in part.items() if n != "frozen"}, "dataset": state}
