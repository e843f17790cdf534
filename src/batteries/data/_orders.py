"""The order of an epoch: indices at positions, found when they are asked for."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch

from batteries._seeding import rekey, rng_state, set_rng_state
from batteries.data._samples import number_of
from batteries.data._shuffle import Shuffle
from batteries.data._streams import remembers

_AHEAD = 8192  # positions whose indices are computed at once


class Order(Protocol):
    """Indices at positions; `again` says how often each came before, None: never."""

    def reach(self, start: int, stop: int) -> int: ...  # how far it goes, at most to `stop`
    def take(self, positions: range) -> list[Any]: ...  # between the last start and stop
    def again(self, positions: range) -> list[Any] | None: ...
    def state(self) -> Any: ...  # of the sampler, after what has been reached


class AsItIs:
    """Positions are indices."""

    def __init__(self, length: int) -> None:
        self._length = length

    def reach(self, start: int, stop: int) -> int:  # noqa: ARG002  # for those that are read
        return min(stop, self._length)

    def take(self, positions: range) -> list[int]:
        return list(positions)

    def again(self, positions: range) -> None:  # noqa: ARG002  # none comes twice
        return None

    def state(self) -> None:
        return None


class Shuffled(AsItIs):
    """The indices at equally spaced positions of a shuffle, computed ahead, many at a time."""

    def __init__(self, length: int, key: tuple[int, ...]) -> None:
        super().__init__(length)
        self._shuffle = Shuffle(length, key)
        self._known = range(0)
        self._indices: list[int] = []

    def take(self, positions: range) -> list[int]:
        if not positions:
            return []
        if (
            positions.step != self._known.step
            or positions[0] not in self._known
            or positions[-1] not in self._known
        ):
            count = max(_AHEAD, len(positions))
            end = min(positions.start + count * positions.step, self._length)
            self._known = range(positions.start, end, positions.step)
            self._indices = self._shuffle(
                np.arange(self._known.start, end, positions.step)
            ).tolist()
        first = self._known.index(positions[0])
        return self._indices[first : first + len(positions)]


class Sampled:
    """What a sampler of the user yields, as a function of a key, read when it is needed.

    Between two reads others draw, so it has its own state of all generators. A sampler with
    `state_dict` and `load_state_dict` is begun by these anywhere, and draws by position.

    Args:
        counts: Whether anybody asks for `again`.
        batches: Whether it yields lists of indices.
        begun: A state of the sampler, after so many positions.
    """

    def __init__(
        self,
        sampler: Any,
        key: tuple[int, ...],
        counts: bool,
        batches: bool = False,
        begun: tuple[Any, int] = (None, 0),
    ) -> None:
        self._sampler, self._key = sampler, key
        self._counts, self._batches = counts, batches
        self._seen: Counter[int] = Counter()
        self._values: list[Any] = []
        self._before: list[Any] = []
        self._base = 0  # the position of the first value
        self._iterator: Iterator[Any] | None = None
        self._ended = False
        self._remembers = remembers(sampler)
        rekey(*key)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(key[-1])
        generator = getattr(sampler, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(int(torch.randint(2**62, ())))
        state, position = begun
        if self._remembers and state is not None:
            sampler.load_state_dict(copy.deepcopy(state))
            self._base = position
        self._draws = rng_state()

    def reach(self, start: int, stop: int) -> int:
        gone = min(start - self._base, len(self._values))
        if gone > 0:
            del self._values[:gone], self._before[:gone]
            self._base += gone
        if self._base + len(self._values) < stop and not self._ended:
            set_rng_state(self._draws)
            while self._base + len(self._values) < stop and not self._ended:
                self._read()
                if self._base < start:  # on the way to where the pass begins
                    self._values.clear()
                    self._before.clear()
                    self._base += 1 - self._ended
            self._draws = rng_state()
        return min(stop, self._base + len(self._values))

    def _read(self) -> None:
        position = self._base + len(self._values)
        if self._remembers:
            rekey(*self._key, position)
        if self._iterator is None:
            self._iterator = iter(self._sampler)
        try:
            value = next(self._iterator)
        except StopIteration:
            self._ended = True
            return
        self._values.append(value)
        if self._counts:
            before = [self._came(i, position) for i in (value if self._batches else [value])]
            self._before.append(before if self._batches else before[0])

    def _came(self, index: Any, position: int) -> int:
        if self._remembers:
            return position + 1  # what came before a state is not known
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

    def state(self) -> Any:
        return copy.deepcopy(self._sampler.state_dict()) if self._remembers else None
