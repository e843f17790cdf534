"""Warnings that show a line of the program, not of this library."""

from __future__ import annotations

import sys
import warnings

_PASSED = ("batteries", "contextlib")  # the frames of blocks (`with`) are between ours


def warn(message: str) -> None:
    """Warn at the line of the program that has called this library, however deep the call is."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _PASSED:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
