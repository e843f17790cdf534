"""Numbers as texts, with as many digits as tell them apart."""

from __future__ import annotations

import math
from collections.abc import Iterable

_EXACT = 12  # significant digits in which numbers differ; after them comes what was rounded


def shown(values: Iterable[float], least: int = 4, sign: str = "") -> list[str]:
    """Numbers of one column: those that differ look different, and none looks like 0 that is not.

    Args:
        least: Digits after the point, where they are enough.
        sign: "+": positive numbers have one too.
    """
    exact = [float(f"{value:.{_EXACT}g}") for value in values]
    finite = [abs(value) for value in exact if math.isfinite(value) and value]
    different = len(set(map(str, exact)) - {"-0.0"} | ({"0.0"} if 0.0 in exact else set()))
    if not finite or max(finite) < 1e7:
        for digits in range(least, least + 2):
            texts = [f"{value + 0.0:{sign}.{digits}f}" for value in exact]
            if len(set(texts)) == different and all(v >= 10 ** (1 - digits) for v in finite):
                return texts
    for digits in range(3, _EXACT + 1):
        texts = [f"{value + 0.0:{sign}.{digits}g}" for value in exact]
        if len(set(texts)) == different:
            break
    return texts
