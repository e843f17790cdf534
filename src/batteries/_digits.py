"""Numbers as texts with enough digits to tell them apart."""

from __future__ import annotations

import math
from collections.abc import Iterable

_EXACT = 12  # significant digits that count; later digits are rounding errors


def shown(values: Iterable[float], least: int = 4, sign: str = "") -> list[str]:
    """The numbers of a column, so that different numbers look different, and only 0 looks like 0.

    Args:
        least: Digits after the point, if they are enough.
        sign: With "+", positive numbers have a sign too.
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
