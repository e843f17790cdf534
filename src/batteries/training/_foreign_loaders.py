"""The batches and the position of loaders of other libraries."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from batteries.data import Arrival, DataLoader
from batteries.data._failing import Failed
from batteries.data._streams import remembers


def fetched(batches: Iterator[Any]) -> Iterator[Arrival]:
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:  # torch's loaders can go on after an error
            batch = Failed(error, bare=True)
        yield Arrival(batch, [], 0, 0)


def _inside(loader: Any) -> Any:
    """The loader in a progress bar of tqdm, or in Fabric's loader."""
    while not remembers(loader):
        held = getattr(loader, "__dict__", {})
        inner = [held[name] for name in ("iterable", "_dataloader") if name in held]
        if not inner:
            break
        [loader, *_] = inner
    return loader


class Place:
    """In a window, lets another library's loader return its state from the window's beginning.

    The window's batches have all been fetched, so a checkpoint with the present state would skip
    them. The loader may be inside of another library's wrapper.
    """

    def __init__(self, loader: Any, steps: int) -> None:
        inner = _inside(loader)
        foreign = not isinstance(loader, DataLoader)
        self._of = inner if steps > 1 and foreign and remembers(inner) else None
        self.let_go()

    def held(self, arrivals: Iterator[Arrival]) -> Iterator[Arrival]:
        """The first batch of each window; before it is fetched, the loader's state is kept."""
        own = self._of if hasattr(self._of, "__dict__") else None
        while True:
            if own is not None:
                state = copy.deepcopy(own.state_dict())
                vars(own)["state_dict"] = lambda state=state: copy.deepcopy(state)
                vars(own)["load_state_dict"] = self._load
            first = next(arrivals, None)
            if first is None:
                self.let_go()
                return
            yield first

    def _load(self, *arguments: Any, **options: Any) -> Any:
        self.let_go()
        assert self._of is not None
        return self._of.load_state_dict(*arguments, **options)

    def let_go(self) -> None:
        for name in ("state_dict", "load_state_dict") if hasattr(self._of, "__dict__") else ():
            vars(self._of).pop(name, None)
