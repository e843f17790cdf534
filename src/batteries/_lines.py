"""Metrics as lines of JSON: where a run keeps them, and how they are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batteries._files import PathLike
from batteries._foreign import lines_of, open_regular, parse_json

NAME = "metrics.jsonl"
_OTHERS = ("nan", "inf", "-inf")  # numbers that JSON does not have


def read_lines(logdir: PathLike) -> Iterator[dict[str, Any]]:
    """What a `JsonLinesLogger` wrote, line by line; a torn or foreign line is left out.

    >>> list(read_lines("runs/nothing"))
    []

    Metrics that are not finite are floats again.

    Args:
        logdir: The directory, or the file.
    """
    path = Path(logdir)
    path = path / NAME if path.is_dir() else path
    if path.is_file():
        with open_regular(path) as file:
            yield from filter(None, map(parse_line, lines_of(file)))


def parse_line(line: bytes) -> dict[str, Any] | None:
    r"""What one line says; None where it is torn or foreign.

    >>> parse_line(b'{"step": 1}\n'), parse_line(b'{"step": 1')
    ({'step': 1}, None)
    """
    try:
        value = parse_json(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    metrics, others = value.get("metrics"), value.pop("not_finite", None)
    if isinstance(metrics, dict):
        # Earlier versions wrote the strings into the metrics.
        found = {**metrics, **(others if isinstance(others, dict) else {})}
        metrics.update({
            name: float(text)
            for name, text in found.items()
            if isinstance(text, str) and text in _OTHERS and name in metrics
        })  # fmt: skip
    return value
