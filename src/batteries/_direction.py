"""Whether lower or higher scores are better, which users must say."""

from __future__ import annotations

from typing import Any

import numpy as np


def said_direction(metric_minimization: Any, of: str, metric: str | None = None) -> bool:
    """The user's `metric_minimization` as a bool, or a TypeError.

    Args:
        of: The subject of the error: "find_weights with a function as its metric".
        metric: The metric, if the user says directions by the names of metrics.
    """
    if isinstance(metric_minimization, bool | np.bool_):
        return bool(metric_minimization)
    found = "" if metric_minimization is None else f"; found {metric_minimization!r}"
    lower, higher = (each if metric is None else {metric: each} for each in (True, False))
    raise TypeError(
        f"{of} has to know whether lower is better: pass metric_minimization={lower} for losses "
        f"and errors, metric_minimization={higher} for accuracy, AUC and the like{found}"
    )
