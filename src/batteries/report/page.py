"""The runs of a log directory as one page, which needs nothing but a browser."""

from __future__ import annotations

import html
import json
import math
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any

from tqdm import tqdm

from batteries.files import PathLike, write_whole
from batteries.lines import NAME as LINES
from batteries.lines import read_lines
from batteries.scoreboard import RunInfo, check_gap, check_gaps, read_runs

Curve = list[tuple[float, float]]  # steps and values
# Together under a megabyte, shared by all runs.
_POINTS = 24_000
_DIFFS, _LOGS = 150_000, 150_000  # characters
_FEWEST, _MOST = 20, 400  # points of a curve


def write_report(logdir: PathLike, output: PathLike = "report.html") -> Path:
    """Write the runs in a directory, and those below it, as one page of HTML.

    >>> write_report("runs")
    Traceback (most recent call last):
    NotADirectoryError: there is no directory runs

    The page loads nothing from elsewhere. It has the table of runs, curves of those that are
    chosen, validation against test and leaderboards, and of each run its arguments, environment,
    best checkpoints, diff and the end of its log. Long curves, diffs and logs are shortened, so
    that 100 runs stay under a megabyte.

    Raises:
        LookupError: There are no runs.
        OSError: Of the disk, with the path.
    """
    runs = read_runs(logdir)
    if not runs:
        raise LookupError(f"there are no runs in {logdir}")
    shown = tqdm(runs, "report", leave=False, disable=not sys.stderr.isatty())
    packages: list[dict[str, str]] = []
    data = {
        "title": str(logdir),
        "written": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "runs": [_described(run, len(runs), packages) for run in shown],
        "packages": packages,
        "gaps": [f"{check.runs} runs: {check.verdict}" for check in check_gaps(runs)],
    }
    page = files("batteries.report")
    text = page.joinpath("page.html").read_text()
    for name, part in (
        ("title", html.escape(str(logdir))),
        ("css", page.joinpath("page.css").read_text()),
        ("js", page.joinpath("page.js").read_text()),
        ("data", _embedded(data)),  # last: what is in it is not looked at again
    ):
        text = text.replace("{{" + name + "}}", part, 1)
    path = Path(output)
    encoded = text.encode()
    with write_whole(path, len(encoded)) as file:
        file.write(encoded)
    return path


def _embedded(data: Any) -> str:
    r"""JSON that no browser takes for anything else.

    >>> _embedded({"run": "</script>"})
    '{"run":"\\u003c/script>"}'
    """
    text = json.dumps(_finite(data), separators=(",", ":"), allow_nan=False, default=str)
    return text.replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def _described(run: RunInfo, count: int, packages: list[dict[str, str]]) -> dict[str, Any]:
    session = run.session
    versions = session.get("packages") or {}
    if versions not in packages:  # most runs share them
        packages.append(versions)
    git = session.get("git") or {}
    shown = ("state", "error", "started", "stopped", "world_size", "host", "cpu", "memory", "gpus",
             "driver", "python", "platform")  # fmt: skip
    return {
        "row": run.row(),
        "problems": run.problems,
        "gaps": check_gap(run),
        "args": session.get("args") or {},
        "command": session.get("command") or [],
        "git": {name: value for name, value in git.items() if name != "untracked"},
        "environment": {name: session.get(name) for name in shown if session.get(name)},
        "variables": session.get("variables") or {},
        "starts": len(run.record.get("sessions", [])),
        "packages": packages.index(versions),
        "checkpoints": list(_best_checkpoints(run)),
        "curves": _curves(run, count),
        "diff": _text(run.path / str(git["diff"]), _DIFFS // count) if git.get("diff") else "",
        "log": _text(run.path / "log.txt", _LOGS // count, tail=True),
    }


def _best_checkpoints(run: RunInfo) -> Iterator[dict[str, Any]]:
    """Those of the best epochs that are still there."""
    for stage in run.stages:
        sign = 1 if stage.minimization else -1
        scored = [row for row in stage.rows if isinstance(row.get(stage.metric), int | float)]
        for row in sorted(scored, key=lambda row: sign * row[stage.metric])[:5]:
            for path in stage.path.glob(f"exp_{row['epoch']}.*"):
                yield {"file": str(path), "epoch": row["epoch"], stage.metric: row[stage.metric]}


def _curves(run: RunInfo, count: int) -> dict[str, Curve]:
    found: dict[str, Curve] = {}
    for path in sorted(
        path for depth in ("", "*/", "*/*/") for path in run.path.glob(depth + LINES)
    ):
        stage = "/".join(
            part for part in path.parent.relative_to(run.path).parts if part != "metrics"
        )
        for line in read_lines(path):
            if isinstance(line.get("metrics"), dict):
                _add(found, stage, line.get("step"), line["metrics"])
    if not found:  # what the checkpoints' scores tell
        for one in run.stages:
            for row in one.rows:
                _add(found, one.name, row["epoch"], {**row, "epoch": None})
    points = max(_FEWEST, min(_MOST, _POINTS // count // max(1, len(found))))
    return {name: thinned(curve, points) for name, curve in found.items()}


def _add(found: dict[str, Curve], stage: str, step: Any, metrics: dict[str, Any]) -> None:
    for name, value in metrics.items():
        if all(isinstance(each, int | float) and math.isfinite(each) for each in (step, value)):
            curve = found.setdefault(f"{stage}/{name}" if stage else name, [])
            curve.append((step, float(f"{value:.5g}")))


def thinned(curve: Iterable[tuple[float, float]], points: int) -> Curve:
    """A curve of at most that many points: the first, the last, and the extremes between.

    >>> thinned([(0, 1.0), (1, 1.1), (2, 9.0), (3, 1.2), (4, 0.5), (5, 1.0)], 4)
    [(0, 1.0), (2, 9.0), (4, 0.5), (5, 1.0)]
    """
    given = list(curve)
    if len(given) <= points:
        return given
    parts = max(1, (points - 2) // 2)
    kept = {0, len(given) - 1}
    for part in range(parts):
        inside = range(
            1 + part * (len(given) - 2) // parts, 1 + (part + 1) * (len(given) - 2) // parts
        )
        kept.add(min(inside, key=lambda index: given[index][1]))
        kept.add(max(inside, key=lambda index: given[index][1]))
    return [given[index] for index in sorted(kept)]


def _text(path: Path, length: int, tail: bool = False) -> str:
    """The beginning or the end of a text, with a word on what is left out."""
    try:
        text = path.read_bytes().decode(errors="replace")
    except OSError:
        return ""
    left_out = len(text) - length
    if left_out <= 0:
        return text
    word = f"[{left_out:,} characters are left out: {path}]"
    return f"{word}\n{text[-length:]}" if tail else f"{text[:length]}\n{word}"
