"""The order of an epoch: the indices at its positions, computed when they are needed."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler

from batteries._foreign import brief
from batteries._seeding import isolated_rng, rekey, rng_state, set_rng_state
from batteries._warnings import warn
from batteries.data._copies import Pickled, copy_from, pickled
from batteries.data._generators import generators_in, rekey_each
from batteries.data._samples import number_of
from batteries.data._shuffle import Shuffle
from batteries.data._streams import remembers

_AHEAD = 8192  # positions whose indices are computed at once


def check_undivided(sampler: Any, dataset: Any, ranks: int) -> None:
    """Raise if a sampler divides the samples among the ranks, which the loader does, too."""
    inner = (getattr(sampler, name, None) for name in ("sampler", "batch_sampler"))
    for each in (sampler, *inner):
        for name in ("num_replicas", "num_processes"):
            count = getattr(each, name, 1)
            if ranks == 1 or not isinstance(count, int) or count < 2 or _has_all(each, dataset):
                continue
            raise ValueError(
                f"{type(each).__name__} divides the samples among {count} ranks, and the "
                "loader would divide each part again: leave out the sampler (and pass "
                f"shuffle=True), or make it with {name}=1 and rank 0"
            )


def _has_all(sampler: Any, dataset: Any) -> bool:
    """Whether a sampler knows the number of ranks, and yet has as many indices as samples."""
    with suppress(TypeError, NotImplementedError):  # one of them has no length
        return not isinstance(sampler, DistributedSampler) and len(sampler) >= len(dataset)
    return False


def _is_of_torch(sampler: Any) -> bool:
    parts = sampler, getattr(sampler, "sampler", sampler)
    return all(type(part).__module__.partition(".")[0] in ("torch", "builtins") for part in parts)


class AsItIs:
    """The order of the dataset: positions are indices."""

    def __init__(self, length: int) -> None:
        self._length = length

    def reach(self, start: int, stop: int) -> int:  # noqa: ARG002
        """The order's end, at most `stop`."""
        return min(stop, self._length)

    def take(self, positions: range) -> list[Any]:
        """The indices at positions between the last start and stop."""
        return list(positions)

    def again(self, positions: range) -> list[Any] | None:
        """How often each index came before in the epoch; None if all are new."""

    def state(self) -> None:
        """The sampler's state after the positions reached."""


class Shuffled(AsItIs):
    """A shuffled order; the indices of equally spaced positions are computed many at a time."""

    def __init__(self, length: int, key: tuple[int, ...]) -> None:
        super().__init__(length)
        self._shuffle = Shuffle(length, key)
        self._known = range(0)
        self._indices: list[int] = []

    def take(self, positions: range) -> list[int]:
        if not positions:
            return []
        known = self._known
        inside = positions[0] in known and positions[-1] in known
        if not (inside and positions.step == known.step):
            count = max(_AHEAD, len(positions))
            end = min(positions.start + count * positions.step, self._length)
            self._known = range(positions.start, end, positions.step)
            self._indices = self._shuffle(np.arange(positions.start, end, positions.step)).tolist()
        first = self._known.index(positions[0])
        return self._indices[first : first + len(positions)]


class Sampled:
    """The order of the user's sampler, which is read when needed and seeded by a key.

    Other code uses the random generators between two reads, so their states are switched for each
    read. A sampler with `state_dict` and `load_state_dict` resumes at any position, and is seeded
    for each position. Generators that a sampler owns are seeded for each position, too.

    Args:
        counts: Whether `again` is needed.
        batches: Whether the sampler yields lists of indices.
        begun: A state of the sampler, and the position to which it belongs.
    """

    def __init__(
        self,
        sampler: Any,
        key: tuple[int, ...],
        counts: bool,
        batches: bool,
        begun: tuple[Any, int],
    ) -> None:
        self._sampler, self._key = sampler, key
        self._counts, self._batches = counts, batches
        self._seen: Counter[int] = Counter()
        self._values: list[Any] = []
        self._before: list[Any] = []
        self._base = 0  # the position of the first value
        self._most = math.inf  # the positions of the order, if it was resumed
        self._begun: Any = None  # the sampler's state at the beginning of the order
        self._iterator: Iterator[Any] | None = None
        self._ended = False
        self._remembers = remembers(sampler)
        self._tried = self._remembers or key[-1] > 0 or _is_of_torch(sampler)
        rekey(*key)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(key[-1])
        generator = getattr(sampler, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(int(torch.randint(2**62, (), device="cpu")))
        self._own: dict[str, Any] = {}
        self._find_generators()
        state, position = begun
        if self._remembers and state is not None:
            with suppress(TypeError, NotImplementedError):  # it has no length
                self._most = len(sampler) if position else math.inf
            sampler.load_state_dict(copy.deepcopy(state))
            self._base = position
            if position >= self._most:
                self._ended = True
                # The end's state begins the next order of some samplers. Others must end first.
                if [*islice(sampler, 1)]:
                    sampler.load_state_dict(copy.deepcopy(state))
        with suppress(Exception):  # of samplers without a state before the first index
            self._begun = None if self._base else self.state()
        self._draws = rng_state()

    def __getstate__(self) -> dict[str, Any]:
        """What `left` needs: a copy of the loader begins an order of its own."""
        return {"_ended": self._ended, "_begun": self._begun}

    def reach(self, start: int, stop: int) -> int:
        gone = min(start - self._base, len(self._values))
        if gone > 0:
            del self._values[:gone], self._before[:gone]
            self._base += gone
        if self._base + len(self._values) < stop and not self._ended:
            set_rng_state(self._draws)
            while self._base + len(self._values) < stop and not self._ended:
                self._read()
                if self._base < start:  # skipped on the way to the pass's beginning
                    self._values.clear()
                    self._before.clear()
                    self._base += 1 - self._ended
            self._draws = rng_state()
        return min(stop, self._base + len(self._values))

    def _read(self) -> None:
        position = self._base + len(self._values)
        if self._remembers:
            rekey(*self._key, position)
        try:
            value = self._next(position)
        except StopIteration:
            self._ended = True
            return
        if self._batches and not isinstance(value, Iterable):
            raise TypeError(
                f"batch_sampler yields {brief(value)}; expected lists of indices: pass sampler= "
                "for single indices"
            )
        if position == self._most:
            raise ValueError(
                f"resumed in the middle of an epoch, {type(self._sampler).__name__} yields more "
                f"than its {position} indices: its state_dict() must hold the position, so that "
                "the next iter() after load_state_dict yields the next index"
            )
        self._values.append(value)
        if self._counts:
            before = [self._came(i, position) for i in (value if self._batches else [value])]
            self._before.append(before if self._batches else before[0])

    def _next(self, position: int) -> Any:
        if self._own:  # for each position: others may use the same generators between two reads
            rekey_each(self._own, *self._key, position)
        if self._iterator is not None:
            return next(self._iterator)
        known = len(self._own)
        before = None if self._tried else pickled(self._sampler)
        self._iterator = iter(self._sampler)
        value = next(self._iterator)
        if before is not None:
            self._try_again(before)
        self._find_generators()
        if len(self._own) == known or self._remembers:
            return value
        self._iterator = None  # the sampler has made its generators at this first read
        set_rng_state(self._draws)
        return self._next(position)

    def _try_again(self, before: Pickled) -> None:
        """Warn if the sampler has changed itself, and its next order would differ by this.

        This is tried on copies, once for a loader, and only if the first read changed the sampler.
        """
        self._tried, after = True, pickled(self._sampler)
        if after is None or after.data == before.data:
            return
        with isolated_rng():
            first, second = self._first_of(before), self._first_of(after)
        if first == second or not (first and second):
            return
        name = type(self._sampler).__name__
        warn(
            f"{name} changes itself when it is read, so its order depends on the passes before: a "
            "run that resumes gets another order, in which samples may be missing. In __iter__, "
            "shuffle a copy (batches = list(self.batches)), or give it set_epoch(epoch), or "
            "state_dict() and load_state_dict(state)",
        )

    def _first_of(self, state: Pickled) -> str:
        """The beginning of the order of a copy; empty if the copy cannot be read."""
        try:
            order = Sampled(copy_from(state), self._key, False, self._batches, (None, 0))
            order._tried = True
            return repr(order.take(range(order.reach(0, 32))))
        except Exception:  # of the user's code, which did not expect to be copied
            return ""

    def _find_generators(self) -> None:
        """Find the sampler's own generators, except the one that is seeded once for the order."""
        whole = getattr(self._sampler, "generator", None)
        found = generators_in(sampler=self._sampler, beyond=(Dataset,))
        self._own = {place: own for place, own in found.items() if own is not whole}

    def _came(self, index: Any, position: int) -> int:
        if self._remembers:
            return position + 1  # after resuming, the earlier indices are not known
        number = index if type(index) is int else number_of(index)
        self._seen[number] += 1
        return self._seen[number] - 1

    def take(self, positions: range) -> list[Any]:
        return [self._values[position - self._base] for position in positions]

    def again(self, positions: range) -> list[Any] | None:
        if not self._counts:
            return None
        before = [self._before[position - self._base] for position in positions]
        return before if any(map(any, before) if self._batches else before) else None

    def left(self) -> Any:
        """The sampler's state at the beginning, if the order was not read to its end."""
        return None if self._ended else self._begun

    def state(self) -> Any:
        return copy.deepcopy(self._sampler.state_dict()) if self._remembers else None


Order: TypeAlias = AsItIs | Sampled
