"""Predictions of several models put together, and what is found out about that."""

from batteries.blend._correlations import Correlation as Correlation
from batteries.blend._correlations import correlation as correlation
from batteries.blend._means import geometric as geometric
from batteries.blend._means import majority_vote as majority_vote
from batteries.blend._means import mean as mean
from batteries.blend._means import power_average as power_average
from batteries.blend._ranks import rank_average as rank_average
from batteries.blend._tables import blend_files as blend_files
from batteries.blend._thresholds import Threshold as Threshold
from batteries.blend._thresholds import find_threshold as find_threshold
from batteries.blend._weights import FoundWeights as FoundWeights
from batteries.blend._weights import find_weights as find_weights
