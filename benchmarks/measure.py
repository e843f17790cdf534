"""Contenders side by side: they take turns, so that a slow moment of the machine slows them all."""

from __future__ import annotations

import gc
import importlib
import sys
import time
from collections.abc import Callable, Mapping
from statistics import median
from timeit import Timer
from types import ModuleType
from typing import Any

Contender = Callable[[], object]
Timings = dict[str, list[float] | None]  # microseconds per call, one a turn; None: not installed


def peer(module: str) -> Any | None:
    """Import a module of another library; None where it is not installed."""
    if module.startswith("torchtnt"):
        # It imports pkg_resources, which setuptools 84 no longer has, and would use it only if
        # torch did not know its own version.
        sys.modules.setdefault("pkg_resources", ModuleType("pkg_resources"))
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        return None


def take_turns(
    contenders: Mapping[str, Contender | None],
    *,
    turns: int,
    calls: int = 1,
    steps: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Time `turns` rounds of all contenders (A B C A B C ...), each `calls` calls of `steps`."""
    timers = {
        name: Timer(call, timer=clock) for name, call in contenders.items() if call is not None
    }
    timings: Timings = {name: [] if name in timers else None for name in contenders}
    for timer in timers.values():
        timer.timeit(calls)  # caches, lazy imports and the processor's clock warm up
    for _ in range(turns):
        gc.collect()  # nothing is collected while a contender runs
        for name, timer in timers.items():
            seconds = timer.timeit(calls)
            measured = timings[name]
            assert measured is not None
            measured.append(seconds / calls / steps * 1e6)
    return timings


def report(
    title: str, timings: Timings, *, reference: str, added: bool = False, unit: str = "us"
) -> None:
    """Print a table: median, minimum and the ratio of the medians to the reference's.

    Args:
        added: Also the median, over the turns, of the difference to the reference.
    """
    scale = {"us": 1.0, "ms": 1e-3}[unit]
    base = timings[reference]
    assert base is not None
    header = ["", f"median, {unit}", f"min, {unit}", "ratio"] + [f"added, {unit}"] * added
    rows = [header]
    for name, times in timings.items():
        if times is None:
            rows.append([name, "not installed"] + [""] * (len(header) - 2))
            continue
        values = [median(times) * scale, min(times) * scale, median(times) / median(base)]
        more = median(mine - bases for mine, bases in zip(times, base, strict=True)) * scale
        rows.append([name, *(f"{value:.2f}" for value in values)] + [f"{more:+.2f}"] * added)
    print(f"\n### {title}\n")
    print_table(rows)


def print_table(rows: list[list[str]]) -> None:
    """Print rows, the first of them the header, as Markdown."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    for row in [rows[0], rule, *rows[1:]]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print(f"| {' | '.join(cells)} |")
