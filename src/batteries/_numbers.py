"""Numbers that users pass, of any type: checked, and named in errors."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import timedelta
from typing import Any

from batteries._foreign import brief

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def as_number(value: Any, name: str) -> float:
    """One number, of Python, numpy or torch. Anything else is a TypeError with its name."""
    if type(value) in (int, float) and abs(value) < 1e300:  # at once: a loop asks for each batch
        return float(value)
    if not isinstance(value, str | bytes):
        with suppress(TypeError, ValueError, RuntimeError, OverflowError):
            return float(value.item() if hasattr(value, "item") else value)
    raise TypeError(f"{name} is {_told(value)}; expected one number")


def as_whole(value: Any, name: str, least: int | None = None, told: str = "") -> int:
    """A whole number, of Python, numpy or torch.

    Args:
        least: The smallest one that is allowed.
        told: More about what is expected, for errors. A unit begins with a space.
    """
    found = None
    if not isinstance(value, str | bytes | bool):
        with suppress(TypeError, ValueError, RuntimeError, OverflowError):
            found = int(value)
    if found is None or found != value:
        of = " of" if told.startswith(" ") else ""  # a unit
        raise TypeError(f"{name} is {_told(value)}; expected a whole number{of}{told}")
    if least is not None and found < least:
        raise ValueError(f"{name} is {found}; expected {least} or more{told}")
    return found


def as_seed(seed: Any) -> int:
    """The user's seed, in the range that all rooms take."""
    found = as_whole(seed, "seed", told=f", not a {type(seed).__name__}")
    if not 0 <= found < 2**64:
        raise ValueError(f"seed is {found}; expected an integer from 0 to 2**64 - 1")
    return found


def as_seconds(time: str | float | timedelta, name: str) -> float:
    """A span of time in seconds: a number of them, a timedelta, or "8h50m"."""
    if isinstance(time, timedelta):
        time = time.total_seconds()
    if isinstance(time, str):
        parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", time)
        if parts and "".join(map("".join, parts)) == time.replace(" ", ""):
            return sum(float(number) * _UNITS[unit] for number, unit in parts)
    elif (found := as_number(time, name)) >= 0:
        return found
    raise ValueError(
        f'{name} is {time!r}; expected seconds, a timedelta, or a text such as "8h50m"'
    )


def _told(value: Any) -> str:
    shape = getattr(value, "shape", ())
    return f"a {type(value).__name__.lower()} of shape {tuple(shape)}" if shape else brief(value)
