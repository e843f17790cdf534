"""Whether lower or higher scores are better, which users must say."""

from __future__ import annotations

from typing import Any

import numpy as np


def said_direction(metric_minimization: Any, of: str) -> bool:
    """The user's `metric_minimization` as a bool, or a TypeError that names `of`."""
    if isinstance(metric_minimization, bool | np.bool_):
        return bool(metric_minimization)
    found = "" if metric_minimization is None else f"; found {metric_minimization!r}"
    raise TypeError(
        f"{of} has to know whether lower is better: pass metric_minimization=True for losses and "
        f"errors, metric_minimization=False for accuracy, AUC and the like{found}"
    )
