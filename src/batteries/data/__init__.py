"""A DataLoader that can be resumed, and whose batches depend only on (seed, epoch, step)."""

from batteries import _public
from batteries.data._loader import DataLoader
from batteries.data._plan import Arrival
from batteries.data._shuffle import Shuffle

__all__ = [
    "Arrival",
    "DataLoader",
    "Shuffle",
]
_public.own(globals())
