"""Cases that `make test` leaves to `make stress PART=sweeps`."""

from __future__ import annotations

from typing import Any

import pytest


def sweep(*values: Any) -> Any:
    """A case of `parametrize` that repeats a promise which another case proves."""
    return pytest.param(*values, marks=pytest.mark.sweep)
