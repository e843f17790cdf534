"""The page itself: everything is in it, and nothing is loaded."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

from tqdm import tqdm

from batteries._files import PathLike, make_directory, write_whole
from batteries.report._contents import Contents, contents_of
from batteries.scoreboard import RunInfo, check_gaps, read_runs

_LIMIT = 1_000_000  # bytes of the page of 100 runs
_POINTS = 40_000  # of all curves of 100 runs, about eleven bytes each
_TEXTS = 150_000  # bytes of all diffs of 100 runs, and of all logs
_CURVE = 400  # points, more than a phone has pixels


def write_report(logdir: PathLike, output: PathLike = "report.html") -> Path:
    """Write the runs in a directory, and those below it, as one page for a browser.

    >>> with start_run("runs", {"lr": 0.1}) as run:
    ...     CheckpointManager(run.path).process(0.9, 1, {})
    >>> write_report("runs", "report.html")
    PosixPath('report.html')

    The page holds the table of runs, the curves of `metrics.jsonl` and of the checkpoints' scores,
    and for each run its arguments, environment, diff and the end of `log.txt`. It is under 1 MB for
    100 runs: curves keep their first, last and extreme points, long diffs and logs are cut with a
    word. What cannot be read is told on the page, and the rest is shown.

    Raises:
        LookupError: There are no runs.
        NotADirectoryError: There is no such directory.
        OSError: The page cannot be written; the one that was there before is as it was.
    """
    runs = read_runs(logdir)
    if not runs:
        raise LookupError(
            f"there are no runs in {logdir}: a run is a directory with a run.json (start_run) or "
            "the checkpoints of a CheckpointManager"
        )
    # disable=None: a bar where there is a terminal, nothing elsewhere
    found = [contents_of(run) for run in tqdm(runs, "report", leave=False, disable=None)]
    page = _page(_fitting(str(logdir), found, _verdicts(runs)))
    output = Path(output)
    make_directory(output.parent)
    with write_whole(output, len(page)) as file:
        file.write(page)
    return output


def _verdicts(runs: Sequence[RunInfo]) -> list[str]:
    try:
        return [str(check) for check in check_gaps(runs)]
    except ModuleNotFoundError as error:  # of scipy, which the rest does without
        return [str(error)]


def _fitting(logdir: str, runs: Sequence[Contents], gaps: Sequence[str]) -> bytes:
    """The data of the page, with as many points and lines as there is room for."""
    factor, share = max(len(runs) / 100, 1), 1.0
    while True:
        data = _data(logdir, runs, gaps, factor * share)
        if len(data) < 0.95 * factor * _LIMIT or share < 0.05:  # the rest is the page's own
            return data
        share *= 0.7


def _data(logdir: str, runs: Sequence[Contents], gaps: Sequence[str], share: float) -> bytes:
    points = level([len(curve) for run in runs for curve in run.curves], _POINTS * share, _CURVE)
    diffs = level([len(text) for text in {run.diff.text for run in runs}], _TEXTS * share)
    logs = level([len(run.log.text) for run in runs], _TEXTS * share)
    shared = _Shared()
    filled = (name for run in runs for name, value in run.row.items() if value not in (None, ""))
    order = {name: 0 for run in sorted(runs, key=lambda run: -len(run.row)) for name in run.row}
    known = set(filled)
    columns = [name for name in order if name in known]
    data = {
        "logdir": logdir,
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "version": _version(),
        "columns": columns,
        "gaps": gaps,
        "runs": [
            {
                "name": run.name,
                "path": run.path,
                "row": run.row,
                "problems": run.problems,
                "curves": [
                    [curve.group, curve.part, curve.unit, *curve.points(points), curve.lost()]
                    for curve in run.curves
                ],
                "checkpoints": run.checkpoints,
                "sessions": run.sessions,
                "facts": {title: shared.table(values) for title, values in run.facts.items()},
                "packages": shared.add(shared.table(run.packages)),
                "diff": shared.add(run.diff.cut(diffs)),
                "log": run.log.cut(logs),
            }
            for run in runs
        ],
        "shared": shared.values,
    }  # fmt: skip
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Inside a script element only "<" can begin what ends it. A lone surrogate, which UTF-8 cannot
    # write, becomes the \udcXX that JSON has for it.
    return text.replace("<", "\\u003c").encode(errors="backslashreplace")


def level(sizes: Sequence[int], total: float, most: int = 2**20) -> int:
    """Under which the sizes are to be cut so that together they stay within a total."""
    left = int(total)
    for count, size in zip(range(len(sizes), 0, -1), sorted(sizes), strict=True):
        if size > left // count:
            return min(left // count, most)
        left -= size
    return most


class _Shared:
    """Values that are on the page once, whoever has them."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[str, int] = {}

    def add(self, value: Any) -> int:
        """Where a value is."""
        key = json.dumps(value)
        if key not in self._places:
            self._places[key] = len(self.values)
            self.values.append(value)
        return self._places[key]

    def table(self, values: dict[str, str]) -> list[int]:
        """Where the pairs of a dict are."""
        return [self.add(pair) for pair in values.items()]


def _page(data: bytes) -> bytes:
    folder = files("batteries.report")
    page, style, script = (
        folder.joinpath(f"page.{kind}").read_bytes() for kind in ("html", "css", "js")
    )
    # By their digests: no other style or script would work, even if one came in.
    page = page.replace(b"STYLE-DIGEST", _digest(style)).replace(b"SCRIPT-DIGEST", _digest(script))
    page = page.replace(b"PAGE-STYLE", style).replace(b"PAGE-SCRIPT", script)
    return page.replace(b"PAGE-DATA", data)  # last, as it may hold any of these words


def _digest(text: bytes) -> bytes:
    return b"sha256-" + base64.b64encode(hashlib.sha256(text).digest())


def _version() -> str:
    try:
        return version("batteries")
    except PackageNotFoundError:  # from a directory of sources
        return ""
