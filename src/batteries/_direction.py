"""Whether lower or higher is better: it is said, and never guessed."""

from __future__ import annotations

from typing import Any

import numpy as np


def said_direction(metric_minimization: Any, of: str) -> bool:
    """The direction that a user has said, as a bool.

    Args:
        of: What needs it, for the error.

    Raises:
        TypeError: Nothing, or no bool, was said.
    """
    if isinstance(metric_minimization, bool | np.bool_):
        return bool(metric_minimization)
    found = "" if metric_minimization is None else f"; found {metric_minimization!r}"
    raise TypeError(
        f"{of} has to know whether lower is better: pass metric_minimization=True for losses and "
        f"errors, metric_minimization=False for accuracy, AUC and the like{found}"
    )
