"""Hints for calls that use another library's name of an argument."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# Another library's name, and our possible names. The hint is the first name that the function has.
_OURS: dict[str, tuple[str, ...]] = {
    "n_splits": ("n_folds", "folds"),
    "cv": ("n_folds", "folds"),
    "folds": ("n_folds",),
    "n_repeats": ("repeats",),
    "max_train_size": ("window",),
    "random_state": ("seed",),
    "group": ("groups",),
    "X": ("data", "oof", "predictions"),
    "y": ("targets", "target"),
    "y_true": ("targets", "target"),
    "y_pred": ("oof", "predictions"),
    "preds": ("predictions", "oof"),
    "labels": ("targets", "target"),
    "target": ("targets",),
    "targets": ("target",),
    "scoring": ("metric",),
    "greater_is_better": ("metric_minimization",),
    "direction": ("metric_minimization",),
    "estimator": ("model",),
    "meta_model": ("model",),
    "sample_weight": ("weights",),
    "p": ("power",),
}
_SAID = {  # other names: an argument that the function must have for the hint, and the hint
    "shuffle": ("kind", "nothing, because rows are shuffled, except with kind='time'"),
    "stratify": ("kind", "targets=, with kind='stratified'"),
    "test_size": ("kind", "n_folds=: each fold validates one part of n_folds"),
}


def hints(function: Callable[P, R]) -> Callable[P, R]:
    """Let a call with an unknown argument raise an error that names the right argument."""
    known = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                raise TypeError(
                    f"{function.__name__} has no argument {name!r}: {_hint(name, known)}"
                )
        return function(*args, **kwargs)

    return called


def _hint(name: str, known: list[str]) -> str:
    needed, said = _SAID.get(name, ("", ""))
    if needed in known:
        return f"say {said}"
    meant = [ours for ours in _OURS.get(name, ()) if ours in known]
    meant += difflib.get_close_matches(name, known, 1)
    return f"say {meant[0]}=" if meant else f"it takes {', '.join(known[:-1])} and {known[-1]}"
