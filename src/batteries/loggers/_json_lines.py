"""One JSON object a line: the record that needs no tracker."""

from __future__ import annotations

import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

from batteries._files import append_whole, make_directory, write_whole
from batteries._foreign import lines_of, open_regular
from batteries._lines import NAME, parse_line
from batteries._records import check_held
from batteries.loggers._background import BackgroundLogger, Row, file_name


class JsonLinesLogger(BackgroundLogger):
    """Metrics as lines of `metrics.jsonl`: the local truth.

    >>> with JsonLinesLogger("runs/digits") as lines:
    ...     lines.log_metrics({"train": {"loss": 0.5}}, step=1)
    >>> json.loads(Path("runs/digits/metrics.jsonl").read_text())["metrics"]
    {'train/loss': 0.5}

    A line is a JSON object with a `time` (seconds since 1970) and `metrics`, `params`, `text` or
    `figure` (a file in `figures`), and a `step` where there is one. A run that goes on first cuts
    the lines after its checkpoint; where nothing was kept, all are put aside, in
    `metrics.1.jsonl`. A metric that is not finite is null, and `not_finite` has "nan", "inf" or
    "-inf" by its name: so a column stays one of numbers in polars, pandas, jq and JavaScript.
    """

    def _open(self) -> None:
        check_held(self.logdir)
        path = make_directory(self.logdir) / NAME
        if path.exists() and self._continues == -1:
            path.replace(_free(path))
        elif path.exists():
            _mend(path, self._continues)

    def _write_metrics(self, rows: list[Row]) -> None:
        self._write([
            {"step": row.step, "time": row.time, **_strict(row.metrics)} for row in rows
        ])  # fmt: skip

    def _write_params(self, params: dict[str, Any]) -> None:
        self._write([{"time": time.time(), "params": params}])

    def _write_figure(self, name: str, png: bytes, step: int) -> None:
        file = f"figures/{file_name(name)}_{step}.png"
        make_directory(self.logdir / "figures")
        with write_whole(self.logdir / file, len(png), inside=self.logdir) as image:
            image.write(png)
        self._write([{"step": step, "time": time.time(), "figure": {name: file}}])

    def _write_text(self, name: str, text: str, step: int) -> None:
        self._write([{"step": step, "time": time.time(), "text": {name: text}}])

    def _write(self, lines: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(line, default=str, allow_nan=False) + "\n" for line in lines)
        check_held(self.logdir)
        append_whole(self.logdir / NAME, text.encode(), inside=self.logdir)


def _free(path: Path) -> Path:
    names = (path.with_suffix(f".{number}{path.suffix}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def _mend(path: Path, after: int | None) -> None:
    """Drop a torn last line, and the lines of steps that are to come again."""
    with open_regular(path, inside=path.parent) as file:
        lines = [*lines_of(file)]
        if file.read(1):
            raise ValueError(f"{path} has a line that no logger writes: move the file away")
    kept = [line for line in lines if line.endswith(b"\n") and not _is_after(line, after)]
    if len(kept) < len(lines):
        with write_whole(path, sum(map(len, kept)), inside=path.parent) as file:
            file.writelines(kept)


def _is_after(line: bytes, step: int | None) -> bool:
    own = (parse_line(line) or {}).get("step") if step is not None else None
    return isinstance(own, int) and step is not None and own > step


def _strict(metrics: dict[str, float]) -> dict[str, dict[str, Any]]:
    """JSON knows no NaN.

    >>> _strict({"loss": math.nan, "lr": 0.1})
    {'metrics': {'loss': None, 'lr': 0.1}, 'not_finite': {'loss': 'nan'}}
    """
    others = {name: str(value) for name, value in metrics.items() if not math.isfinite(value)}
    if not others:
        return {"metrics": metrics}
    return {"metrics": metrics | dict.fromkeys(others), "not_finite": others}
