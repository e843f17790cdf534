"""Predictions of several models put together, and what is found out about that."""

from batteries.blend.correlations import Correlation as Correlation
from batteries.blend.correlations import correlation as correlation
from batteries.blend.means import geometric as geometric
from batteries.blend.means import majority_vote as majority_vote
from batteries.blend.means import mean as mean
from batteries.blend.means import power_average as power_average
from batteries.blend.ranks import rank_average as rank_average
from batteries.blend.tables import blend_files as blend_files
from batteries.blend.thresholds import Threshold as Threshold
from batteries.blend.thresholds import find_threshold as find_threshold
from batteries.blend.weights import FoundWeights as FoundWeights
from batteries.blend.weights import find_weights as find_weights
