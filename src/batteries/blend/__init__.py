"""Predictions of several models put together, and what is found out about that."""

from batteries import _public
from batteries.blend._correlations import Correlation, correlation
from batteries.blend._means import geometric, majority_vote, mean, power_average
from batteries.blend._ranks import rank_average
from batteries.blend._tables import blend_files
from batteries.blend._thresholds import Threshold, find_threshold
from batteries.blend._weights import FoundWeights, find_weights

__all__ = [
    "Correlation",
    "FoundWeights",
    "Threshold",
    "blend_files",
    "correlation",
    "find_threshold",
    "find_weights",
    "geometric",
    "majority_vote",
    "mean",
    "power_average",
    "rank_average",
]
_public.own(globals())
