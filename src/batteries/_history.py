"""The scores of epochs: `metrics.json`, which a `CheckpointManager` keeps."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from batteries._files import PathLike
from batteries._foreign import Most, check, is_epoch, is_number, parse_json, read_regular

NAME = "metrics.json"
Row = dict[str, Any]  # {"epoch": 3, "accuracy": 0.9}; None stands for what is not finite
_HISTORY = {"metric_name": Most(str, 1000), "metric_minimization": bool, "values": list}


class History(NamedTuple):
    """What `metrics.json` says.

    >>> History("loss", True, [{"epoch": 1, "loss": 0.5}], foreign=0).metric
    'loss'
    """

    metric: str
    minimization: bool
    rows: list[Row]
    foreign: int  # rows that no manager writes: left out, or without what is no number


def read_history(path: PathLike, inside: PathLike | None = None) -> History:
    """The scores of epochs in a file.

    >>> CheckpointManager("runs").process(0.5, 1, {})
    >>> read_history("runs/metrics.json").rows
    [{'epoch': 1, 'loss': 0.5}]

    Args:
        inside: The directory that no link may lead out of.

    Raises:
        ValueError: Something else.
        OSError: It cannot be read.
    """
    data = read_regular(path, inside)
    try:
        memory = parse_json(data)
    except ValueError:
        memory = parse_json(_mended(data))
    try:
        check(memory, _HISTORY)
        missing = [name for name in _HISTORY if name not in memory]
        if missing:
            more = ": whether lower is better" if "metric_minimization" in missing else ""
            raise ValueError(f"it does not say {', '.join(missing)}{more}")
    except ValueError as error:
        raise ValueError(f"{path} is not a CheckpointManager's: {error}") from None
    rows = [own for row in memory["values"] if (own := _own(row)) is not None]
    foreign = sum(not is_row(row) for row in memory["values"])
    return History(memory["metric_name"], memory["metric_minimization"], rows, foreign)


def is_row(row: Any) -> bool:
    """Whether a value is a row of a history.

    >>> is_row({"epoch": 1, "loss": None}), is_row({"epoch": "1/../../a"})
    (True, False)
    """
    return row is not None and _own(row) == row


def _own(row: Any) -> Row | None:
    """Of a row what can be one: each score is a number, or None."""
    if not isinstance(row, dict) or not is_epoch(row.get("epoch")):
        return None
    return {name: value if is_number(value) else None for name, value in row.items()}


_START = '"values": [\n'


def _mended(data: bytes) -> bytes:
    """All whole rows of a file whose last one was torn by a power cut."""
    text = data.decode(errors="replace")
    if _START not in text:
        return data
    at = last = text.index(_START) + len(_START)
    decoder = json.JSONDecoder()
    try:
        while between := re.compile(r"[\s,]*").match(text, at):
            _, at = decoder.raw_decode(text, between.end())
            last = at
    except (ValueError, RecursionError):
        pass
    return f"{text[:last]}\n  ]\n}}".encode()
