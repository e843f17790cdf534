"""The page itself: one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Hashable, Sequence
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any

from batteries import __version__
from batteries._files import PathLike, make_directory, write_whole
from batteries.report._contents import CURVE, Contents, cell
from batteries.report._media import fitting
from batteries.report._workers import read_contents
from batteries.scoreboard import RunInfo, Runs, check_gaps
from batteries.scoreboard._runs import argument_columns, some_runs

_LIMIT = 1_000_000  # bytes of a page of up to 200 runs; more runs have more, 5 MB for 1,000 runs
_PICTURES = 2_000_000  # bytes of pictures, texts and histograms
_POINT = 5.5  # bytes of a point of a curve
_SHARES = {"curves": 0.5, "diffs": 0.1, "logs": 0.1}  # of the limit
# The modules of the script, in the order in which they stand on the page.
SCRIPT = (
    "base", "data", "filter", "state", "table", "plot", "curves", "scatter", "parallel",
    "compare", "run", "main",
)  # fmt: skip


def write_report(logdir: PathLike, output: PathLike = "report.html") -> Path:
    """Write the runs in a directory, and those below it, as one page for a browser.

    >>> with start_run("runs", {"lr": 0.1}) as run:
    ...     CheckpointManager(run.path).process(0.9, 1, {})
    >>> write_report("runs", "report.html")
    PosixPath('report.html')

    The page has the table of runs, curves, plots of any columns, what differs between runs, and
    for each run its arguments, environment, pictures, diff and the end of `log.txt`. The page of
    100 runs has less than 1 MB, and that of 1,000 runs less than 5 MB. Pictures, logged texts and
    histograms add 2 MB at most. Curves keep their first, last and extreme points. Long texts are
    cut, with a note. The page names the files that cannot be read, and shows the rest.

    Args:
        logdir: The directory of the runs, or of one run.
        output: The page to write. Its directory is created.

    Returns:
        The path of the page.

    Raises:
        LookupError: There are no runs.
        NotADirectoryError: There is no directory `logdir`.
        OSError: The page cannot be written. A previous page is unchanged.
    """
    runs = some_runs(logdir)
    page = page_of(data_of(logdir, runs, read_contents(runs)))
    output = Path(output)
    make_directory(output.parent)
    with write_whole(output, len(page)) as file:
        file.write(page)
    return output


def data_of(logdir: PathLike, runs: Runs, found: Sequence[Contents]) -> bytes:
    """The data of the page, with as many points and lines of texts as there is room for."""
    limit, share = _LIMIT * max(len(runs) / 200, 1), 1.0
    media = fitting([(run.path, own.media, own.problems)
                     for run, own in zip(runs, found, strict=True)], _PICTURES)  # fmt: skip
    head = _head(str(logdir), runs)
    while True:
        data = _written(head, _bodies(found, media, limit * share))
        size = len(data) - sum(len(json.dumps(each)) for each in media)
        if size < 0.9 * limit or share < 0.05:  # the rest is for the style and the script
            return data
        share *= max(0.3, 0.85 * limit / size)


def _head(logdir: str, runs: Runs) -> dict[str, Any]:
    rows = runs.rows()
    columns = {name: [cell(row[name]) for row in rows] for name in runs.columns}
    order = {id(run): place for place, run in enumerate(runs)}
    return {
        "logdir": logdir,
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "version": __version__,
        "columns": {
            name: values
            for name, values in columns.items()
            if any(value not in (None, "") for value in values)
        },
        "arguments": argument_columns(runs),
        "minimization": runs.minimization,
        "best": [order[id(run)] for run in runs.best_first() if run.validation is not None],
        "gaps": _verdicts(runs),
    }


def _verdicts(runs: Sequence[RunInfo]) -> list[str]:
    try:
        return [str(check) for check in check_gaps(runs)]
    except ModuleNotFoundError as error:  # scipy is missing; the rest of the page works without it
        return [str(error)]


def _bodies(
    found: Sequence[Contents], media: list[list[list[Any]]], room: float
) -> dict[str, list[Any]]:
    rooms = {name: share * room for name, share in _SHARES.items()}
    lengths = [len(curve) for run in found for curve in run.curves]
    points = level(lengths, rooms["curves"] / _POINT, CURVE)
    diffs = level([len(text) for text in {run.diff.text for run in found}], rooms["diffs"])
    logs = level([len(run.log.text) for run in found], rooms["logs"])
    shared: dict[Hashable, int] = {}  # values that several runs may have; the page has them once

    def place(value: Hashable) -> int:
        return shared.setdefault(value, len(shared))

    def table(values: dict[str, str]) -> tuple[int, ...]:
        return tuple(map(place, values.items()))

    runs = [
        {
            **vars(run),
            "curves": [curve.thinned(points).written() for curve in run.curves],
            "media": own,
            "facts": {title: table(values) for title, values in run.facts.items()},
            "packages": place(table(run.packages)),
            "diff": place(run.diff.cut(diffs)),
            "log": run.log.cut(logs),
        }
        for run, own in zip(found, media, strict=True)
    ]
    return {"runs": runs, "shared": list(shared)}


def _written(head: dict[str, Any], bodies: dict[str, list[Any]]) -> bytes:
    data = {**head, **bodies}
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Without "<", no text can end the script element. A lone surrogate, which UTF-8 cannot write,
    # becomes the \udcXX that JSON has for it.
    return text.replace("<", "\\u003c").encode(errors="backslashreplace")


def level(sizes: Sequence[int], total: float, most: int = 2**20) -> int:
    """The size to which each is cut, so that the sum of all is at most `total`."""
    left = int(total)
    for count, size in zip(range(len(sizes), 0, -1), sorted(sizes), strict=True):
        if size > left // count:
            return min(left // count, most)
        left -= size
    return most


def page_of(data: bytes, live: bool = False) -> bytes:
    """The page with its data.

    Args:
        live: Whether the page asks its server for newer data.
    """
    folder = files("batteries.report")
    page, style = (folder.joinpath(f"page.{kind}").read_bytes() for kind in ("html", "css"))
    parts = [folder.joinpath("page").joinpath(f"{name}.js").read_bytes() for name in SCRIPT]
    script = b'"use strict";\n' + b"\n".join(parts)
    # Only the style and the script with these digests work, even if a run brings others.
    page = page.replace(b"STYLE-DIGEST", _digest(style)).replace(b"SCRIPT-DIGEST", _digest(script))
    page = page.replace(b"CONNECT-TO", b"'self'" if live else b"'none'")
    page = page.replace(
        b"LIVE-MARK", b'\n<meta name="batteries-live" content="1">' if live else b""
    )
    page = page.replace(b"PAGE-STYLE", style).replace(b"PAGE-SCRIPT", script)
    return page.replace(b"PAGE-DATA", data)  # last, because the data may hold any of these words


def _digest(text: bytes) -> bytes:
    return b"sha256-" + base64.b64encode(hashlib.sha256(text).digest())
