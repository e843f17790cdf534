"""State that differs between ranks."""

from __future__ import annotations

from typing import Any

from batteries._memory import check_remembers, memory_of
from batteries.distributed._collectives import all_gather
from batteries.distributed._launch import rank, world_size


class PerRank:
    """An object whose state is saved for each rank, such as a meter in the middle of an epoch.

    >>> meter = AverageMeter()
    >>> meter.update(3.0)
    >>> checkpoint = make_checkpoint("train", 1, nn.Linear(2, 1), meter=PerRank(meter))
    >>> checkpoint["meter_state_dict"]
    {'ranks': [{'value': 3.0, 'sum': 3.0, 'counter': 1}]}

    A checkpoint is written by rank 0; what it holds of other objects is rank 0's. All ranks call
    `make_checkpoint` then. Load it through `PerRank(meter)` too.
    """

    def __init__(self, part: Any) -> None:
        self._part = memory_of(part)

    def state_dict(self) -> dict[str, Any]:
        """The states of all ranks; a collective."""
        state = self._part.state_dict()
        check_remembers("PerRank", self._part, state)
        return {"ranks": all_gather(state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this rank's state.

        Raises:
            ValueError: It was saved by another number of ranks.
        """
        if len(state["ranks"]) != world_size():
            raise ValueError(
                f"the state was saved by {len(state['ranks'])} ranks, and there are "
                f"{world_size()}: start as many ranks, or leave this object out of the load"
            )
        self._part.load_state_dict(state["ranks"][rank()])
