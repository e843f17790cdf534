"""A DataLoader whose every batch is a function of (seed, epoch, step), and which can go on."""

from batteries import _public
from batteries.data._loader import Arrival, DataLoader
from batteries.data._shuffle import Shuffle

__all__ = [
    "Arrival",
    "DataLoader",
    "Shuffle",
]
_public.own(globals())
