"""Predictions of all ranks, in the order of the dataset, each sample once."""

from batteries import _public
from batteries.predictions._collected import Gathered, Predictions
from batteries.predictions._files import load

__all__ = [
    "Gathered",
    "Predictions",
    "load",
]
_public.own(globals())
