"""What the page shows of a run. Any file of the run may be missing, torn or foreign."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from batteries._foreign import is_number
from batteries._rundir.names import LOG
from batteries.report._curves import Curve, Pairs, clock_of, read_curves
from batteries.report._media import Shown, media_of
from batteries.scoreboard import RunInfo
from batteries.scoreboard._info import logged_by, read_text

_LONG = 2000  # characters of a value
_SESSIONS = 20  # the last starts of a run that are shown
_START = ("started", "stopped", "state", "why", "error", "host")
_DIFF = 64_000  # bytes
_LOG = 16_000  # bytes
_MANY = 1000  # values of one table, such as arguments or packages
CURVE = 400  # points, more than a phone has pixels


class Text(NamedTuple):
    """The beginning or the end of a file.

    Attributes:
        text: The bytes that were read, as text.
        missing: How many bytes of the file were not read.
        tail: Whether the text is the end of the file.
    """

    text: str
    missing: int = 0
    tail: bool = False

    def cut(self, most: int) -> str:
        """Whole lines of at most `most` bytes, and a note on how many bytes are missing."""
        data = self.text.encode(errors="surrogateescape")
        kept = data[-most:] if self.tail else data[:most]
        if len(kept) < len(data):
            kept = kept.partition(b"\n")[2] if self.tail else kept.rpartition(b"\n")[0] + b"\n"
        text, missing = kept.decode(errors="replace"), self.missing + len(data) - len(kept)
        if not missing:
            return text
        note = f"[{missing:,} bytes {'before' if self.tail else 'after'} this]\n"
        return note + text if self.tail else text + note


_NOTHING = Text("")


@dataclass
class Contents:
    """What the page shows of a run. The script of the page uses these names."""

    name: str
    path: str
    state: str
    problems: list[str]
    curves: list[Curve] = field(default_factory=list)
    clock: Pairs = ([], [])  # steps, and seconds since the first step
    epochs: Pairs = ([], [])  # steps, and their epochs
    media: list[Shown] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, dict[str, str]] = field(default_factory=dict)  # of the last session
    packages: dict[str, str] = field(default_factory=dict)
    diff: Text = _NOTHING
    log: Text = _NOTHING


def contents_of(run: RunInfo) -> Contents:
    """Read a run for the page. The `problems` of the result name what cannot be read."""
    found = Contents(run.name, str(run.path), run.state, [])
    with _telling(found, "its curves"):
        series, items = logged_by(run)
        curves, found.epochs = read_curves(run, series)
        found.curves = [curve.thinned(CURVE) for curve in curves]
        found.clock = clock_of(series)
        found.media = media_of(items, found.problems)
    with _telling(found, "its checkpoints"):
        found.checkpoints = _checkpoints(run)
    with _telling(found, "run.json"):
        sessions = run.record.get("sessions", [])[-_SESSIONS:]
        found.sessions = [{name: cell(each.get(name)) for name in _START} for each in sessions]
        found.packages = _texts(run.session.get("packages"))
        found.facts = _facts(run.session)
    with _telling(found, "its diff"):
        found.diff = Text(*read_text(run.diff, _DIFF)) if run.diff else _NOTHING
    with _telling(found, LOG):
        found.log = Text(*run.log(_LOG), tail=True)
    found.problems[:0] = map(str, run.problems)
    return found


@contextmanager
def _telling(found: Contents, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the rest of the run, and the other runs, are still shown
        text = f"{what} cannot be shown: {type(error).__name__}: {error}"
        found.problems.append(_cut(text, _LONG))


def _checkpoints(run: RunInfo) -> list[dict[str, Any]]:
    stages = {stage.name: stage for stage in run.stages}
    return [
        {
            "stage": each.stage,
            "epoch": cell(each.epoch),
            "metric": stages[each.stage].metric,
            "minimization": stages[each.stage].minimization,
            "score": cell(each.score),
            "file": each.path.relative_to(run.path).as_posix(),
            "bytes": each.bytes,
        }
        for each in run.checkpoints()
    ]


def _facts(session: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    machine = ("host", "platform", "cpu", "memory", "gpus", "driver", "python", "world_size", "pid")
    own = {name: session[name] for name in machine if session.get(name) not in (None, [], "")}
    return {
        "arguments": _texts(session.get("args")),
        "code": _texts({"command": _command(session.get("command")), **(session.get("git") or {})}),
        "environment": _texts({**own, **(session.get("variables") or {})}),
    }


def _command(words: Any) -> str:
    return " ".join(map(str, words)) if isinstance(words, list) else _text(words or "")


def _texts(values: dict[str, Any] | None) -> dict[str, str]:
    pairs = values or {}
    texts = {
        _cut(name, 200): _text(value) for name, value in itertools.islice(pairs.items(), _MANY)
    }
    return {**texts, **({"": f"[{len(pairs) - _MANY:,} more]"} if len(pairs) > _MANY else {})}


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return _cut(text, _LONG)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} [{len(text) - most:,} characters more]"


def cell(value: Any) -> float | str | None:
    """A value for a table: a finite number, a text, or None for missing or infinite ones."""
    if is_number(value):
        number: float = float(f"{value:.9g}") if isinstance(value, float) else value
        return number
    return None if value is None or type(value) in (int, float) else _text(value)
