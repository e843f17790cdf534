"""Predictions in the order of the dataset, each sample once, whichever rank made them."""

from batteries.predictions._collected import Predictions as Predictions
from batteries.predictions._files import load as load
