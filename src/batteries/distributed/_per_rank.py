"""State that differs between ranks."""

from __future__ import annotations

from typing import Any

from batteries._foreign import brief, values_in
from batteries._memory import check_remember, memory_of
from batteries.distributed._collectives import all_gather
from batteries.distributed._launch import rank, world_size


class PerRank:
    """An object whose state is saved for each rank, such as a meter in the middle of an epoch.

    >>> meter = AverageMeter()
    >>> meter.update(3.0)
    >>> checkpoint = make_checkpoint("train", 1, nn.Linear(2, 1), meter=PerRank(meter))
    >>> checkpoint["meter_state_dict"]
    {'ranks': [{'value': 3.0, 'sum': 3.0, 'counter': 1}]}

    Rank 0 writes checkpoints, and without `PerRank` they hold only rank 0's state. With `PerRank`,
    all ranks must call `make_checkpoint`. Pass `PerRank(meter)` also when you load.

    Args:
        part: An object with `state_dict` and `load_state_dict`. Its state must be picklable.

    Raises:
        TypeError: `part` lacks these methods.
    """

    def __init__(self, part: Any) -> None:
        if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
            raise TypeError(
                f"part is {brief(part)}; expected an object with state_dict() and load_state_dict()"
            )
        self._part = memory_of(part)

    def state_dict(self) -> dict[str, Any]:
        """The states of all ranks, as {"ranks": [...]}. All ranks call it."""
        state = self._part.state_dict()
        check_remember({"PerRank": (self._part, state)})
        return {"ranks": all_gather(state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load this rank's state.

        Args:
            state: What `state_dict` returned.

        Raises:
            KeyError, TypeError: The state was saved without `PerRank`.
            ValueError: The state was saved by another number of ranks.
        """
        [states] = values_in(state, "PerRank.state_dict", "ranks")
        if not isinstance(states, list):
            raise TypeError(f"ranks is {brief(states)}; expected what PerRank.state_dict returns")
        saved = len(states)
        if saved != world_size():
            raise ValueError(
                f"the state was saved by {saved} rank{'s' * (saved != 1)}, and there are "
                f"{world_size()}: start as many ranks, or do not load this object"
            )
        self._part.load_state_dict(states[rank()])
