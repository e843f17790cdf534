"""Folds that stay the same and are checked for leaks, a first look at data, out-of-fold scores."""

from batteries.splits._checks import check_folds as check_folds
from batteries.splits._first_look import Look as Look
from batteries.splits._first_look import look as look
from batteries.splits._folds import Folds as Folds
from batteries.splits._folds import fold_indices as fold_indices
from batteries.splits._folds import make_folds as make_folds
from batteries.splits._out_of_fold import OutOfFold as OutOfFold
from batteries.splits._out_of_fold import Score as Score
