"""Metrics as JSON objects, one a line, without a tracker."""

from __future__ import annotations

import time
from typing import Any

from batteries._files import make_directory, write_whole
from batteries._rundir.lines import NAME, add_lines, mend, put_aside, strict
from batteries._rundir.record import check_held
from batteries.loggers._background import BackgroundLogger, Row
from batteries.loggers._pictures import Histogram
from batteries.loggers._values import file_name


class JsonLinesLogger(BackgroundLogger):
    """Writes metrics as lines of `metrics.jsonl`.

    >>> with JsonLinesLogger("runs/digits") as lines:
    ...     lines.log_metrics({"train": {"loss": 0.5}}, step=1)
    >>> json.loads(Path("runs/digits/metrics.jsonl").read_text())["metrics"]
    {'train/loss': 0.5}

    A line is a JSON object with a `time` (seconds since 1970), one of `metrics`, `params`, `text`,
    `histogram` and `figure` (a file in `figures`), and a `step` except for `params`. A metric that
    is not finite is null, so its column has only numbers for polars, pandas, jq and JavaScript.
    `not_finite` then has "nan", "inf" or "-inf" under the metric's name.

    A resumed run first removes the lines after its checkpoint. If it has no checkpoint, the old
    file becomes `metrics.1.jsonl`. Without `resume`, new lines are appended to the existing file.

    Args:
        logdir: The directory, or a `Run`.
        run_id: The id in the logger's state. Default: the checkpoint's, else a new one.
    """

    def _open(self) -> None:
        check_held(self.logdir)
        path = make_directory(self.logdir) / NAME
        if path.exists() and self._continues == -1:
            put_aside(path)
        elif path.exists():
            mend(path, self._continues)

    def _write_metrics(self, rows: list[Row]) -> None:
        self._write([
            {"step": row.step, "time": row.time, **strict(row.metrics)} for row in rows
        ])  # fmt: skip

    def _write_params(self, params: dict[str, Any]) -> None:
        self._write([{"time": time.time(), "params": params}])

    def _write_figure(self, name: str, png: bytes, step: int) -> None:
        file = f"figures/{file_name(name)}_{step}.png"
        make_directory(self.logdir / "figures")
        with write_whole(self.logdir / file, len(png), inside=self.logdir) as image:
            image.write(png)
        self._write([{"step": step, "time": time.time(), "figure": {name: file}}])

    def _write_histogram(self, name: str, histogram: Histogram, step: int) -> None:
        self._write([{"step": step, "time": time.time(), "histogram": {name: histogram.plain()}}])

    def _write_text(self, name: str, text: str, step: int) -> None:
        self._write([{"step": step, "time": time.time(), "text": {name: text}}])

    def _write(self, lines: list[dict[str, Any]]) -> None:
        check_held(self.logdir)
        add_lines(self.logdir, lines)
