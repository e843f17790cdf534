"""Reproducible folds, checks for leaks, a first look at data, and out-of-fold scores."""

from batteries import _public
from batteries.splits._assignment import Folds, fold_indices
from batteries.splits._checks import check_folds
from batteries.splits._first_look import Look, look
from batteries.splits._folds import make_folds
from batteries.splits._out_of_fold import OutOfFold, Score

__all__ = [
    "Folds",
    "Look",
    "OutOfFold",
    "Score",
    "check_folds",
    "fold_indices",
    "look",
    "make_folds",
]
_public.own(globals())
