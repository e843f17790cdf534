"""Predictions in the order of the dataset, each sample once, whichever rank made them."""

from batteries.predictions.collected import Predictions as Predictions
from batteries.predictions.files import load as load
