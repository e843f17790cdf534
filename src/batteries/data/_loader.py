"""torch's DataLoader, with a state."""

from __future__ import annotations

import functools
import itertools
import math
import operator
import os
import warnings
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing.util import Finalize
from typing import Any, Literal, NamedTuple, TypeVar, cast

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from batteries._backends import adopt_backends
from batteries._foreign import brief, values_in
from batteries._numbers import as_whole
from batteries._preemption import holding_signals, ignore_signals
from batteries._seeding import (
    chosen_seed,
    isolated_rng,
    numbered_seed,
    rekey,
    rng_state,
    set_rng_state,
)
from batteries._warnings import warn
from batteries.data._carried import plain_values, warn_of_old_values
from batteries.data._failing import Failed, Going, called
from batteries.data._generators import difference
from batteries.data._made import check_same_loader, made_here, unseeded_number, warn_of_repeats
from batteries.data._orders import AsItIs, Order, Sampled, Shuffled, check_undivided
from batteries.data._plan import (
    Arrival,
    Asked,
    Plan,
    ended_at_exit,
    hide_batches_of,
    shown_to_torch,
)
from batteries.data._prefetch import Prefetch
from batteries.data._samples import Ask, Samples, draws
from batteries.data._streams import Stream, followed, fresh_parts, thawed
from batteries.data._workers import (
    change_worker,
    leave_garbage,
    received,
    report_what_cannot_be_sent,
    without_collection,
)
from batteries.distributed._groups import Group, Ranks, ranks_of

T = TypeVar("T", covariant=True)

_SHUFFLE, _SAMPLER, _STEP = 0, 1, 3  # the uses of keys; samples and streams have other numbers


class _Place(NamedTuple):
    turn: int = 0  # the round through the data
    position: int = 0  # in the order of the round
    done: int = 0  # batches of the pass
    state: Any = None  # the sampler's, if it has one; of a stream, the places of its workers


class _Pass:
    """A pass, to which the loop may come back after another pass over the same loader."""

    def __init__(self, epoch: int, begin: _Place, rank: int) -> None:
        self.epoch, self.begin, self.rank = epoch, begin, rank
        self.place = begin
        self.unsettled: list[tuple[int, int, int, Any]] = []  # of batches whose step is open
        self.plan = Plan()
        self.ended = False
        self.before: dict[str, Any] | None = None  # the generators, if they are restored after it


def _check(options: dict[str, Any], batches_per_pass: int | None, sampler: Any) -> None:
    if isinstance(sampler, Iterator):
        raise TypeError(
            f"the sampler is a {type(sampler).__name__}, which ends after one epoch; pass a list"
        )
    if not (sampler is None or hasattr(sampler, "__iter__") or hasattr(sampler, "__getitem__")):
        raise TypeError(f"the sampler is {brief(sampler)}; expected indices, or lists of them")
    if options.get("in_order") is False:
        raise ValueError(
            "in_order is False, which yields batches in an unknown order; leave it out"
        )
    if options.get("generator") is not None:
        warn(
            "the loader does not use generator: its order depends on seed and epoch; pass seed= to "
            "choose the order",
        )
    if batches_per_pass is not None:
        as_whole(batches_per_pass, "batches_per_pass", 1)


class DataLoader(torch.utils.data.DataLoader[T]):
    """torch's DataLoader, with batches that depend only on (seed, epoch, step).

    >>> loader = DataLoader(range(10), batch_size=4, shuffle=True, seed=42)
    >>> first = [batch.tolist() for batch in loader]
    >>> loader.set_epoch(0)
    >>> first == [batch.tolist() for batch in loader]
    True
    >>> loader.epoch, loader.state_dict()["position"]
    (1, 0)

    The order depends only on the seed and the epoch, not on workers, ranks or earlier random
    numbers. The random numbers in `dataset[i]` depend only on the seed, the epoch and `i`; an index
    that is repeated in an epoch gets new ones. This holds for python's, numpy's and torch's global
    generators, and for generators that are found from the dataset, also those of albumentations.
    `check()` reads some samples twice and says where they differ. The random numbers of the loop
    between two batches also depend on the rank.

    After a pass, the global generators are seeded by the seed, the epoch and the rank. If the
    loader has no shuffle, no sampler, no `batches_per_pass` and no saved state, as in validation,
    these generators are as before the pass.

    `state_dict()` counts the batches that the loop has received, not those read ahead. Another run
    resumes from it at the next sample, with any number of workers and ranks.

    A dataset with `__getitems__` is asked for whole batches, as in torch. Its random numbers then
    depend on all indices of the batch, and so on `batch_size` and the number of ranks.

    In a process group, each rank gets its part of every step's samples, `batch_size` on each rank.
    Without shuffle, sampler and `batches_per_pass`, each sample comes once: the ranks' last batches
    may differ in size, and a rank may get one batch fewer. Otherwise all ranks get the same number
    of batches: if the last step has fewer samples than ranks, some samples are repeated.

    If you leave a pass early, the next pass begins where that pass began, with the same batches,
    also with shuffling. For short passes use `batches_per_pass=100`, not `islice(loader, 100)`.

    Args:
        batch_sampler, pin_memory, drop_last: As for torch's loader. With several ranks,
            `drop_last` leaves out the last step of a dataset with indices if a rank would not have
            a full batch.
        seed: The same on every rank. Loaders with the same seed and length have the same order.
            Default: computed from the seed of the last `seed_all` (42 if it was not called), and
            from how many loaders without `seed=` were made after that call. Loaders of another
            `group` are not counted, and loaders with and without shuffling (or a sampler) are
            counted separately. So two loaders differ, and a program that makes its loaders in the
            same order on all ranks of their group can be repeated. A loaded state restores the
            number of loaders, too.
        sharded: Which parts of the data an iterable dataset yields. False: every rank and worker
            yields all items, and each keeps every n-th. "workers": the workers of a rank yield
            different parts, and the loader divides these among the ranks. "ranks": the ranks yield
            different parts, and the loader divides these among the workers. True: every rank and
            worker yields a different part. Default: a dataset that reads both `id` and
            `num_workers` of `get_worker_info()`, in `__iter__` or through `worker_init_fn`, counts
            as "workers". With several workers, a dataset that reads only one of them raises an
            error. Any other dataset counts as False. With several ranks, you must pass `sharded`. A
            dataset with indices is divided by them.
        group: The ranks that divide the samples: a `ProcessGroup`, a `DeviceMesh` of one dimension
            or `(mesh, "dp")`. Ranks of other groups get the same samples, which tensor and context
            parallelism need. With a group of rank 0 alone, rank 0 can evaluate alone. Default: all
            ranks.
        batches_per_pass: The number of batches in a pass, and so in an epoch. The next pass goes on
            where the last one stopped, through one order of the data after another. All ranks get
            the same number of batches. Default: a pass has all samples.
        prefetch_to: A device, as `to_device` takes it. Batches are on this device when the loop
            gets them: the next one is copied during the step, from pinned memory, on a CUDA stream
            of its own. So, on a GPU, the loader reads two batches before the loop gets the first.
            Default: batches stay as `collate_fn` made them.
        **options: Other arguments of torch's loader, which are passed on.

    Attributes:
        epoch: The epoch of the pass under way, or of the next pass. A complete pass adds 1.
        indices: The indices in the dataset of the last received batch; [] for an iterable dataset.
        in_step: True with shuffling, a sampler or `batches_per_pass`. All ranks then get the same
            number of batches.
        group: The argument.

    Raises:
        ValueError: `in_order=False`, an unknown `sharded` or `prefetch_to`, a number out of range,
            or arguments that torch's loader refuses.
        TypeError: A number that is not whole, a `group` that is no group, or a sampler that is not
            iterable, or is an iterator and so ends after one epoch.
    """

    _sampled: Sampled | None = None  # the last order of a sampler

    def __init__(
        self,
        dataset: Dataset[T],
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Iterable[Any] | None = None,
        batch_sampler: Iterable[Any] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        *,
        seed: int | None = None,
        sharded: bool | Literal["workers", "ranks"] | None = None,
        group: Group = None,
        batches_per_pass: int | None = None,
        prefetch_to: torch.device | str | int | None = None,
        worker_init_fn: Callable[[int], None] | None = None,
        **options: Any,
    ) -> None:
        self._prefetch = Prefetch(prefetch_to)
        num_workers = as_whole(num_workers, "num_workers")
        options.update(num_workers=num_workers, pin_memory=pin_memory or self._prefetch.pins)
        told = shown_to_torch(dataset, shuffle, sampler, batch_sampler)
        super().__init__(  # checks the arguments, and keeps them as attributes
            dataset, batch_size and as_whole(batch_size, "batch_size"), *told, batch_sampler,
            collate_fn=collate_fn, drop_last=drop_last, worker_init_fn=worker_init_fn, **options,
        )  # fmt: skip
        hide_batches_of(self, batch_sampler)
        _check(options, batches_per_pass, batch_sampler if sampler is None else sampler)
        self.batches_per_pass = batches_per_pass
        self.seed = chosen_seed(seed)
        self.epoch, self._rank, self._compared, self.group = 0, 0, False, group
        members = tuple(ranks_of(group).members)  # raises if the group is not usable
        self.indices: list[Any] = []
        # After the last received batch, and where a pass begins.
        self._place = self._begin = self._start_of(0)
        self._broken: Any = None  # where the last unfinished pass began and stopped
        self._saved: Any = None  # the place of the last `state_dict()`
        self._open: Iterator[Arrival] | None = None  # a stream between two passes
        self._pass: _Pass | None = None  # the pass under way
        self._latest = _Pass(0, self._begin, 0)  # the pass to which the loader's place belongs
        self._sampler: Any = sampler if batch_sampler is None else batch_sampler
        self._unit = "samples" if batch_sampler is None else "batches"
        self._shuffled = bool(shuffle)
        self.in_step = self._shuffled or self._sampler is not None
        self._asked, self._made = Asked(), made_here(members)
        self._number = unseeded_number(self._made, self.in_step, members) if seed is None else 0
        self.in_step = self.in_step or batches_per_pass is not None
        self._key = numbered_seed(self.seed, self._number)
        self._running: Callable[[], Any] = _nothing
        self._keeps_samples = collate_fn is None and batch_size is not None
        own = self._read_by(sharded, collate_fn is not None)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # super() has warned
            begin = functools.partial(_begin_worker, worker_init_fn)
            self._inner: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
                worker_init_fn=begin, **own, **options
            )

    def _read_by(self, sharded: bool | str | None, draws_too: bool) -> dict[str, Any]:
        """The arguments of the inner torch loader that differ from the user's."""
        dataset = self.dataset
        if isinstance(dataset, IterableDataset):
            self._stream = Stream(dataset, sharded, self.group)
            self._stream.lasts = not self.num_workers or self.persistent_workers
            collate = functools.partial(self._stream.collated, self.collate_fn)
            sizes = {"batch_size": self.batch_size, "drop_last": self.drop_last}
            return {"dataset": self._stream, "collate_fn": collate, **sizes}
        if sharded not in (None, False, "workers"):
            raise ValueError(
                f"sharded is {sharded!r}, but the loader divides the indices of this dataset among "
                "the ranks; leave sharded out. Or if each rank has a dataset of its own, pass a "
                "group of this rank alone"
            )
        self._keyed = draws_too or draws(dataset)
        self._samples = Samples(dataset, self._keeps_samples, self.collate_fn)
        single = self.batch_size is None and self._unit == "samples"
        asked = {"sampler": self._asked, "batch_size": None} if single else {}
        return {
            "dataset": self._samples if self._keyed else dataset,
            "collate_fn": functools.partial(called, "collate_fn", self.collate_fn),
            **(asked or {"batch_sampler": self._asked}),
        }

    def __getstate__(self) -> dict[str, Any]:
        """A copy has the loader's place, but not its pass and its workers."""
        fresh = {"_pass": None, "_latest": _Pass(self.epoch, self._begin, self._rank)}
        return {**vars(self), **fresh, "_open": None, "_running": _nothing}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._is_stream:
            self._stream._of = self.group  # a stream leaves it out, for its workers

    @functools.cached_property
    def _is_stream(self) -> bool:
        return isinstance(self.dataset, IterableDataset)

    @property
    def _is_accelerate_prepared(self) -> bool:
        # accelerate reads this attribute. It would replace this loader, whose order would be lost.
        raise TypeError(
            "leave a batteries.data.DataLoader out of accelerator.prepare(): it divides the "
            "samples between the ranks itself; move its batches with "
            "to_device(batch, accelerator.device)"
        )

    # ---------------------------------------------------------------- passes

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return Going(self._received(), of=self)

    def _received(self) -> Generator[Any, None, None]:
        for arrival in self.arrivals():
            self.receive(arrival)
            yield arrival.batch
        self.complete()

    def running(self) -> Any:
        """Torch's iterator of the pass under way, or None."""
        return self._running()

    def arrivals(self) -> Iterator[Arrival]:
        """One pass whose batches do not count as received yet; a failed batch is a `Failed`.

        >>> loader = DataLoader(range(4), batch_size=2)
        >>> [arrival.indices for arrival in loader.arrivals()]
        [[0, 1], [2, 3]]
        """
        self._say_what_repeats()
        self._rank = self._ranks().rank
        self._compare_with_other_ranks()
        place = self._place = self._begin
        this = self._pass = self._latest = _Pass(self.epoch, place, self._rank)
        if not self.in_step and self._saved is None:
            this.before = rng_state()
        try:
            if self._is_stream:
                batches, self._open = self._open or self._streamed(this), None
            else:
                batches = self._read(this)
            if self._is_stream and self.batches_per_pass is not None:
                for number in range(place.done + 1, self.batches_per_pass + 1):
                    yield next(batches)._replace(done=number, of=this)
                self._open = batches
            else:
                yield from batches
            self._come_back(this)
        finally:
            this.ended = True
            if self._pass is this:
                self._pass = None
            # The plan refers to this loader, and persistent workers to the plan: while the plan is
            # open, the loader is not freed, and its workers do not end.
            this.plan.close()

    def _come_back(self, this: _Pass | None) -> None:
        """Restore the place of a pass that goes on after another one has begun."""
        if this is None or this is self._latest:
            return
        goes_on = "a pass over the loader goes on after another pass over the same loader has begun"
        if self._is_stream or self.persistent_workers:
            raise RuntimeError(
                f"{goes_on}, but an iterable dataset, and persistent workers, have only one place "
                "in the data: make a second loader for the other pass"
            )
        warn(
            f"{goes_on}. Between the two, state_dict() has the other pass's place: if you save "
            "there, make a second loader for the other pass",
        )
        self._latest, self._pass = this, None if this.ended else this
        self.epoch, self._begin, self._place, self._rank = (
            this.epoch, this.begin, this.place, this.rank
        )  # fmt: skip
        self._asked.plan = this.plan

    def _compare_with_other_ranks(self) -> None:
        """Raise once if another rank divides other samples, or has another order of them."""
        ranks = self._ranks()
        if self._compared or ranks.size == 1 or (self._is_stream and self._stream.by_ranks):
            return
        self._compared = True
        told = []
        if self._shuffled or self._sampler is not None or self._is_stream:
            before = self._number  # loaders without a seed
            after = f" after {before} other loader{'s' * (before > 1)}" if before else ""
            told.append(f"seed {self.seed}{after}")
        if not self._is_stream and (self._sampler is None or hasattr(self._sampler, "__len__")):
            told.append(f"{self._length()} {self._unit}")
        check_same_loader(self._made, told, ranks)

    def _say_what_repeats(self) -> None:
        """Warn if the last pass was left early, and was saved there or left there before."""
        begin, left = self._begin[:3], self._place[:3]  # a sampler's state may have tensors
        count = self._place.done - self._begin.done
        again = (begin, left) == self._broken
        if count > 1 and self._pass is None and (again or left == self._saved):
            warn_of_repeats(count, again, operator.length_hint(self, -1))
        self._broken = begin, left

    def _read(self, this: _Pass) -> Iterator[Arrival]:
        if self._keyed and self.num_workers:
            self._samples.look()  # so that each worker searches faster
        plan = self._asked.plan = this.plan = Plan(self._planned(this))
        came = self._prefetch((batch, None) for batch in self._started())
        return (Arrival(batch, *plan.awaited.popleft()[1:]) for batch, _ in came)

    def _streamed(self, this: _Pass) -> Generator[Arrival, None, None]:
        """The batches of a stream from the pass's beginning; endless with `batches_per_pass`."""
        turn, begin, _, parts = self._begin
        if begin:
            self._stream.check_memory()
        while True:
            if not self._stream.begin(turn, parts, self._key):
                self._inner._iterator = None  # persistent workers would go on at another place
            stop = begin
            came = ((received(batch), part) for batch, part in self._started())
            for batch, part in self._prefetch(came):
                start, stop = stop, stop + 1
                yield Arrival(batch, [], start, stop, part, turn, stop, this)
            if self.batches_per_pass is None:
                return
            if not stop:
                raise ValueError(
                    f"{type(self.dataset).__name__} yields no batch: its `__iter__` ends at once, "
                    "or drop_last=True leaves out all of it"
                )
            turn, begin, parts = turn + 1, 0, fresh_parts(len(parts))

    def _started(self) -> Iterator[Any]:
        in_workers = self._is_stream and hasattr(self.dataset, "set_epoch")  # it is called there
        if self.persistent_workers and not in_workers:
            values = dict(plain_values(self.dataset))
            if self._inner._iterator is None:
                self._values = values  # those that the workers have
            warn_of_old_values(self.dataset, self._values, values)
        with holding_signals(), without_collection():
            inner: Any = iter(self._inner)
        came = self._taken(inner)
        if self.num_workers and self._running() is not inner:
            ended_at_exit(os.getpid()).add(inner)
            for worker in inner._workers:  # they ignore SIGTERM, which is for the program
                worker.terminate = functools.partial(type(worker).kill, weakref.proxy(worker))
            # In a cycle of references, the garbage collector would close the workers' queues
            # first. The workers would not learn of the end, and each would be waited for 5 s.
            Finalize(self if self.persistent_workers else came, inner._shutdown_workers)
        self._running = weakref.ref(inner)
        return came

    def _taken(self, inner: Any) -> Generator[Any, None, None]:
        try:
            while True:
                before = getattr(inner, "_rcvd_idx", -1)  # with workers: the next batch
                try:
                    # `next` also reports the batch to a profiler, which takes 8 us without one.
                    reports = self._is_stream or torch.autograd.profiler._is_profiler_enabled
                    yield next(inner) if reports else inner._next_data()
                    continue
                except StopIteration:
                    return
                except Exception as error:
                    # An error of the sampler, a timeout or a worker's death ends the pass: it is
                    # not the error of one batch. Streams send a batch's error in its place.
                    none = getattr(inner, "_rcvd_idx", None) == before or self._asked.plan.broken
                    if none or self._is_stream:
                        raise
                    failed = [Failed(error, bare=self.num_workers > 0)]
                yield failed.pop()
        finally:  # an error's traceback would keep the workers; their end then takes 5 s for each
            if self.num_workers and not self.persistent_workers:
                inner._shutdown_workers()

    def receive(
        self, arrival: Arrival, settled: bool = True, failed: Iterable[Arrival] = ()
    ) -> None:
        """Count a batch as received. A failed batch counts with the next good one.

        >>> loader = DataLoader(range(4), batch_size=2)
        >>> loader.receive(next(loader.arrivals()))
        >>> loader.indices, loader.state_dict()["position"]
        ([0, 1], 2)

        Args:
            arrival: What `arrivals` yielded.
            settled: False does not advance the state yet: a run that resumes gets the batch again.
            failed: Failed batches after this one that count with it.
        """
        self._come_back(arrival.of)
        for one in (arrival, *failed):
            self._latest.unsettled.append((one.turn, one.stop, one.done, one.part))
        if isinstance(arrival.batch, Failed):
            return
        self.indices = arrival.indices
        if settled:
            self._settle()
        rekey(_STEP, self._key, arrival.turn, self._rank, arrival.start)

    def _settle(self) -> None:
        stream = self._is_stream
        for turn, stop, done, part in self._latest.unsettled:
            if stream:
                before = self._place if turn == self._place.turn else self._start_of(turn)
                part = followed(before.state, part)
            self._place = _Place(turn, stop, done, part)
        self._latest.place = self._place
        self._latest.unsettled.clear()

    def complete(self, last: Arrival | None = None) -> None:
        """End a pass after its last batch. `last` is that batch, if there was one.

        >>> loader = DataLoader(range(4))
        >>> loader.complete()
        >>> loader.epoch
        1
        """
        self._come_back(None if last is None else last.of)
        before = self._latest.before
        if before is not None and self._saved is None:
            # A resumed run does not know how often the program has validated.
            set_rng_state(before)
        else:
            rekey(_STEP, self._key, self.epoch, self._rank, -1)
        self._settle()
        if self.batches_per_pass is None:
            self.set_epoch(self.epoch + 1)
        else:
            self.epoch += 1
            self._begin = self._place = self._place._replace(done=0)

    def sizes(self, arrival: Arrival, steps: int) -> list[tuple[int, int]] | None:
        """The number of samples in this step and the next ones: on this rank, and on all ranks.

        >>> loader = DataLoader(range(5), batch_size=2, shuffle=True)
        >>> arrivals = loader.arrivals()
        >>> loader.sizes(next(arrivals), steps=8)
        [(2, 2), (2, 2), (1, 1)]

        The result is None if the numbers are not known before the batches are read: for streams,
        batch samplers, a `collate_fn`, `batch_size=None`, and ranks with different numbers of
        batches.

        Args:
            arrival: The first of the steps: the latest one that `arrivals` yielded.
            steps: The number of steps, 1 or more. Fewer are returned at the end of the pass.
        """
        steps = as_whole(steps, "steps", 1)
        self._come_back(arrival.of)
        ranks = self._ranks()
        if self._is_stream or self._unit == "batches" or not self._keeps_samples:
            return None
        if not (self.in_step or self._drops):
            left = self._length() - arrival.of.begin.position
            if 0 < left % self._group() < ranks.size:
                return None  # some ranks have one batch less
        sizes = []
        for step in (arrival, *self._asked.plan.next_steps(steps - 1)):
            together = step.stop - step.start
            own = len(range(ranks.rank, together, ranks.size)) or 1  # 1: a repeated sample
            sizes.append((own, max(together, ranks.size)))
        return sizes

    def check(self, n: int = 8) -> None:
        """Read the first samples of the epoch twice, and raise if they differ.

        >>> DataLoader(range(10), shuffle=True).check()

        With two or more workers, two of them read each sample once. No other method calls `check`,
        because reading samples may be slow or change a dataset. A `TensorDataset` with torch's own
        `collate_fn` is not read: it uses no random numbers.

        Args:
            n: The number of samples, 1 or more.

        Raises:
            ValueError: Some samples differ. The message has their indices, the places that differ
                and a remedy. Or `n` is below 1.
            TypeError: The dataset is iterable, so a sample cannot be read again. Or `n` is not a
                whole number.
        """
        n = as_whole(n, "n", 1, " samples")
        if self._is_stream:
            raise TypeError(
                f"{type(self.dataset).__name__} is iterable; check asks for samples by their index"
            )
        if not self._keyed:
            return
        with isolated_rng():
            order = self._order(self._begin.turn)
            before = order.state()
            first = order.take(range(order.reach(0, n)))
            if before is not None:
                self._sampler.load_state_dict(before)
            indices = [i for one in first for i in one] if self._unit == "batches" else first
            asks = [Ask(self._key, self._begin.turn, [index]) for index in indices[:n]]
            drawn = list(self._drawn([*asks, *reversed(asks)]))  # the second time in reverse order
        pairs = zip(asks, drawn, reversed(drawn), strict=False)
        unlike = [(ask.indices[0], difference(*pair)) for ask, *pair in pairs]
        told = [
            f"dataset[{index!r}]{place and f' at {place}'}"
            for index, place in unlike
            if place is not None
        ]
        if told:
            found = self._samples.generators()
            keyed = ", ".join(f"{at} ({type(own).__name__})" for at, own in found.items()) or "none"
            raise ValueError(
                f"{len(told)} of {len(asks)} samples differ when they are read again with the same "
                f"seed, epoch and index: {', '.join(told)}. {_REMEDY} Generators found: {keyed}"
            )

    def _drawn(self, asks: list[Ask]) -> Iterator[Any]:
        names = "timeout", "worker_init_fn", "multiprocessing_context"
        same: dict[str, Any] = {name: getattr(self._inner, name) for name in names}
        inner = torch.utils.data.DataLoader(
            self._samples, batch_sampler=cast(Any, asks), collate_fn=_alone,
            num_workers=min(2, self.num_workers), **same,
        )  # fmt: skip
        with holding_signals(), without_collection():
            return iter(inner)

    def __len__(self) -> int:
        """The number of batches in a whole pass, on this rank.

        For an iterable dataset this is an estimate from its length, because each worker has a last
        batch of its own. If `sharded` is "ranks" or True, the length is that of this rank's part.

        Raises:
            TypeError: The dataset or the sampler has no length.
        """
        if self.batches_per_pass is not None:
            return self.batches_per_pass
        if self._is_stream:
            items, ranks = self._length(), self._ranks()
            own = items if self._stream.by_ranks else len(range(ranks.rank, items, ranks.size))
            size = self.batch_size or 1
            return own // size if self.drop_last else -(-own // size)
        steps, rest = divmod(self._length(), self._group())
        more = self.in_step or self._ranks().rank < rest
        return steps + bool(rest and not self._drops and more)

    # ---------------------------------------------------------------- the state

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass. If a loaded state has this epoch, its position stays.

        Raises:
            TypeError: The epoch is not a whole number.
            ValueError: With `batches_per_pass`, the place of the epoch is not known, because the
                dataset is iterable or the sampler has no length.
        """
        epoch = as_whole(epoch, "epoch")
        if epoch != self.epoch:
            self._begin = self._place = self._place_of(epoch)
            self.epoch, self._open = epoch, None

    def _start_of(self, turn: int, position: int = 0) -> _Place:
        workers = fresh_parts(self.num_workers or 1) if self._is_stream else None
        return _Place(turn, position, 0, workers)

    def _place_of(self, epoch: int) -> _Place:
        if self.batches_per_pass is None:
            return self._start_of(epoch)
        sized = self._sampler is None or hasattr(self._sampler, "__len__")
        if self._is_stream or not sized:
            raise ValueError(
                f"set_epoch({epoch}): the next pass is number {self.epoch}. With batches_per_pass, "
                "the place of another pass is not known if the dataset is iterable or the sampler "
                "has no length; use load_state_dict to go on at any place"
            )
        starts = self._starts(self._length())
        turn, step = divmod(epoch * self.batches_per_pass, len(starts) or 1)
        return self._start_of(turn, step * self._group())

    @property
    def batches_before(self) -> int:
        """The batches of the next pass that came before it, because a saved state was loaded.

        >>> loader = DataLoader(range(6), batch_size=2, seed=42)
        >>> loader.load_state_dict({**loader.state_dict(), "position": 4})
        >>> loader.batches_before, len(loader)
        (2, 3)
        """
        if self.batches_per_pass is not None:
            return self._begin.done
        return -(-self._begin.position // (1 if self._is_stream else self._group()))

    def state_dict(self) -> dict[str, Any]:
        """The position of the loop in the data, as plain values.

        >>> DataLoader(range(4), batch_size=2, seed=42).state_dict()
        {'seed': 42, 'epoch': 0, 'position': 0, 'length': 4, 'order': 'as it is', 'step': 2}

        `position` counts the samples that all ranks together have received in this order of the
        data. For a batch sampler it counts batches, and for an iterable dataset the batches of this
        rank.
        """
        self._saved = self._place[:3]
        state = {"seed": self.seed, "epoch": self.epoch, "position": self._place.position}
        if self._number:
            state["loader"] = self._number
        if self.batches_per_pass is not None:
            state["batches_per_pass"] = self.batches_per_pass
            state.update(turn=self._place.turn, done=self._place.done)
        if self._is_stream:
            ranks = self._ranks()
            own = {"rank": ranks.rank, "ranks": ranks.size}
            return {**state, **own, "workers": [thawed(part) for part in self._place.state]}
        sized = hasattr(self._sampler, "__len__")
        if self._place.state is not None:
            state["sampler"] = self._place.state
        return {
            **state,
            "length": self._length() if self._sampler is None or sized else None,
            "order": self._order_name(),
            "step": self._group(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume at the position of a `state_dict`.

        >>> loader = DataLoader(range(4), seed=42)
        >>> loader.load_state_dict({**loader.state_dict(), "epoch": 1, "position": 3})
        >>> [batch.item() for batch in loader]
        [3]

        With another number of ranks or another batch size, the remaining samples are divided
        into other steps, and each comes once.

        Raises:
            ValueError: The state's loader had another seed, length, order or `batches_per_pass`. Or
                an iterable dataset cannot resume in the middle of a pass: it has no state, or the
                number of ranks or workers differs.
            KeyError, TypeError: The state does not come from `state_dict`.
            RuntimeError: A pass is under way.
        """
        if self._pass is not None:
            raise RuntimeError(
                "a pass over the loader is under way: load its state before the loop"
            )
        own, names = self.state_dict(), ["epoch", "position"]
        names += ["turn", "done"] * (self.batches_per_pass is not None)
        values_in(state, "DataLoader.state_dict", "seed", *names)
        for name in ("seed", "length", "order", "batches_per_pass"):
            if state.get(name) != own.get(name):
                raise ValueError(
                    f"the state is that of a loader with {name} {state.get(name)!r}, and this one "
                    f"has {own.get(name)!r}: make the loader as before, or do not load its state"
                )
        found = {name: as_whole(state[name], f"the state's {name}") for name in names}
        number = as_whole(state.get("loader", 0), "the state's loader")
        counted = not self._is_stream and self._sampler is None
        most = {"position": self._length() if counted else None, "done": self.batches_per_pass}
        for name in most.keys() & found.keys():
            end = most[name]
            if not 0 <= found[name] <= (math.inf if end is None else end):
                expected = "0 or more" if end is None else f"0 to {end}"
                raise ValueError(f"the state's {name} is {found[name]}; expected {expected}")
        kept = state.get("sampler")
        if self._is_stream:
            kept = self._start_of(0).state
            if found["position"] > 0:
                kept = self._stream.checked(state, len(kept))
        self.epoch, self._number = found["epoch"], number
        self._key = numbered_seed(self.seed, number)
        turn, done = found.get("turn", self.epoch), found.get("done", 0)
        self._begin = self._place = _Place(turn, found["position"], done, kept)
        self._open = None

    # ---------------------------------------------------------------- the order of an epoch

    @property
    def _drops(self) -> bool:
        return self.drop_last and self._unit == "samples"

    def _length(self) -> int:
        """The number of positions in an epoch, or of items in a stream."""
        order: Any = self.dataset if self._sampler is None else self._sampler
        if not hasattr(order, "__len__"):
            remedy = (
                ""
                if self._is_stream or order is self._sampler
                else (", or make it a torch.utils.data.IterableDataset, which is read item by item")
            )
            raise TypeError(f"{type(order).__name__} has no length: give it __len__{remedy}")
        return len(order)

    def _ranks(self) -> Ranks:
        return ranks_of(self.group)

    def _group(self) -> int:
        """The number of positions in a step, over all ranks."""
        return self._ranks().size * (1 if self._unit == "batches" else self.batch_size or 1)

    def _order_name(self) -> str:
        if self._sampler is not None:
            return f"{self._unit} of {type(self._sampler).__name__}"
        return "shuffled" if self._shuffled else "as it is"

    def _starts(self, length: int) -> range:
        """The positions at which the steps of a round begin."""
        group = self._group()
        return range(0, length - length % group if self._drops else length, group)

    def _planned(self, this: _Pass) -> Generator[tuple[Any, Arrival], None, None]:
        """For each batch, the request to a worker and the arrival to expect."""
        (rank, world_size, _), group = self._ranks(), self._group()
        first, position, done, _ = this.begin
        for turn in itertools.count(first):
            order, start = self._order(turn), position
            self._check_reach(order, start)
            while done != self.batches_per_pass:
                stop = order.reach(start, start + group)
                if stop == start or (self._drops and stop < start + group):
                    break
                positions = range(start + rank, stop, world_size)
                if not positions and self.in_step:
                    one = start + rank % (stop - start)
                    positions = range(one, one + 1)
                if not positions:
                    return
                indices, before = order.take(positions), order.again(positions)
                if self._unit == "batches":
                    [indices] = indices
                    [before] = before or [None]
                done += 1
                arrival = Arrival(None, indices, start, stop, order.state(), turn, done, this)
                yield self._ask(indices, before, turn), arrival
                start = stop
            if self.batches_per_pass in (None, done):
                return
            if not start:
                raise ValueError(
                    f"{stop} {self._unit} make no batch: a step takes {group} of them. Use more "
                    "data, a smaller batch_size or drop_last=False"
                )
            position = 0

    def _check_reach(self, order: Order, start: int) -> None:
        """Raise if the round ends before the position at which it must resume."""
        length = order.reach(start, start)
        if length < start:
            raise ValueError(
                f"the loader resumes at position {start}, but the sampler yields only "
                f"{length} {self._unit}: use the sampler with which the state was saved"
            )

    def _ask(self, indices: list[Any], before: list[int] | None, turn: int) -> Any:
        if self._keyed:
            return Ask(self._key, turn, list(indices), before)
        single = self.batch_size is None and self._unit == "samples"
        return indices[0] if single else indices

    def _order(self, turn: int) -> Order:
        if self._sampler is not None:
            check_undivided(self._sampler, self.dataset, self._ranks().size)
            batches, begin = self._unit == "batches", self._begin
            begun = (begin.state, begin.position) if turn == begin.turn else (None, 0)
            if begun[0] is None and self._sampled is not None:
                begun = self._sampled.left(), 0
            key = _SAMPLER, self._key, turn
            self._sampled = Sampled(self._sampler, key, self._keyed, batches, begun)
            return self._sampled
        length = self._length()
        return Shuffled(length, (_SHUFFLE, self._key, turn)) if self._shuffled else AsItIs(length)


_REMEDY = (
    "The loader seeds random, numpy.random, torch, and the generators that it finds from dataset "
    "and collate_fn through attributes, containers and closures. Use one of these. Do not use "
    "random.SystemRandom, os.urandom, the time, or values that an earlier sample has changed."
)


def _nothing() -> None:
    return None


def _alone(samples: Any) -> Any:
    return samples[0] if type(samples) is list and len(samples) == 1 else samples


def _begin_worker(then: Callable[[int], None] | None, worker_id: int) -> None:
    leave_garbage()
    ignore_signals()
    adopt_backends()
    report_what_cannot_be_sent()
    info: Any = get_worker_info()
    dataset = info.dataset
    begin = functools.partial(called, "worker_init_fn", then) if then else None
    if isinstance(dataset, Stream):
        dataset.begin_worker(begin, worker_id)
        return
    if isinstance(dataset, Samples):
        change_worker(dataset=dataset.dataset)
    if begin is not None:
        begin(worker_id)
