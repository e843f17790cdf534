"""What `make stress` does often, done a few times."""

from __future__ import annotations

import pytest
from stress import run_part

FEW = {"kills": 6, "mutations": 100, "records": 60, "power-ext4": 3, "power-xfs": 3}
# The other parts are functions of the tests, with other arguments.
OWN = [*FEW, "resume", "collectives"]


@pytest.mark.parametrize("part", OWN)
def test_parts(part: str) -> None:
    """Every part of `make stress` holds its promise, here a few times."""
    report = run_part(part, FEW.get(part, 1))
    if "skipped" in report:
        pytest.skip(report)
    assert report.startswith(f"{part}: ")
