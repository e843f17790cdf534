"""Blend the predictions of several models, and find out whether the blend is better."""

from batteries import _public
from batteries.blend._correlations import Correlation, correlation
from batteries.blend._means import Weights, geometric, majority_vote, mean, power_average
from batteries.blend._ranks import rank_average
from batteries.blend._stack import Stack, stack
from batteries.blend._submissions import check_submission
from batteries.blend._tables import blend_files
from batteries.blend._thresholds import Threshold, Thresholds, find_threshold, find_thresholds
from batteries.blend._verdicts import Gain
from batteries.blend._weights import FoundWeights, Step, find_weights

__all__ = [
    "Correlation",
    "FoundWeights",
    "Gain",
    "Stack",
    "Step",
    "Threshold",
    "Thresholds",
    "Weights",
    "blend_files",
    "check_submission",
    "correlation",
    "find_threshold",
    "find_thresholds",
    "find_weights",
    "geometric",
    "majority_vote",
    "mean",
    "power_average",
    "rank_average",
    "stack",
]
_public.own(globals())
