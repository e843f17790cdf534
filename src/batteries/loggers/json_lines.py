"""One JSON object a line: the record that needs no tracker."""

from __future__ import annotations

import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any

from batteries.files import make_directory, naming, write_whole
from batteries.lines import NAME, parse_line
from batteries.loggers.background import BackgroundLogger, Row


class JsonLinesLogger(BackgroundLogger):
    """Metrics as lines of `metrics.jsonl`: the local truth.

    >>> with JsonLinesLogger("runs/digits") as lines:
    ...     lines.log_metrics({"train": {"loss": 0.5}}, step=1)
    >>> json.loads(Path("runs/digits/metrics.jsonl").read_text())["metrics"]
    {'train/loss': 0.5}

    A line is a JSON object with a `time` (seconds since 1970) and `metrics`, `params`, `text` or
    `figure` (a file in `figures`), and a `step` where there is one. A run that goes on first cuts
    the lines after its checkpoint. NaN and infinities are the strings "nan", "inf" and "-inf".
    """

    _file: int

    def _open(self) -> None:
        path = make_directory(self.logdir) / NAME
        if path.exists():
            _mend(path, self._continues)
        with naming(path):
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            self._end = os.fstat(self._file).st_size

    def _write_metrics(self, rows: list[Row]) -> None:
        self._write([
            {"step": row.step, "time": row.time, "metrics": _strict(row.metrics)} for row in rows
        ])  # fmt: skip

    def _write_params(self, params: dict[str, Any]) -> None:
        self._write([{"time": time.time(), "params": _strict(params)}])

    def _write_figure(self, name: str, png: bytes, step: int) -> None:
        file = f"figures/{re.sub(r'[^A-Za-z0-9._-]', '_', name)}_{step}.png"
        make_directory(self.logdir / "figures")
        with write_whole(self.logdir / file, len(png)) as image:
            image.write(png)
        self._write([{"step": step, "time": time.time(), "figure": {name: file}}])

    def _write_text(self, name: str, text: str, step: int) -> None:
        self._write([{"step": step, "time": time.time(), "text": {name: text}}])

    def _write(self, lines: list[dict[str, Any]]) -> None:
        data = "".join(json.dumps(line, default=str) + "\n" for line in lines).encode()
        try:
            with naming(self.logdir / NAME):
                written = os.write(self._file, data)
                if written < len(data):  # the disk is full: the rest says so
                    written += os.write(self._file, data[written:])
        except OSError:
            os.ftruncate(self._file, self._end)  # no torn line
            raise
        self._end += written

    def _close(self) -> None:
        os.close(self._file)


def _mend(path: Path, after: int | None) -> None:
    """Drop a torn last line, and the lines of steps that are to come again."""
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and not _is_after(line, after)]
    if len(kept) < len(lines):
        with write_whole(path, sum(map(len, kept))) as file:
            file.writelines(kept)


def _is_after(line: bytes, step: int | None) -> bool:
    own = (parse_line(line) or {}).get("step") if step is not None else None
    return isinstance(own, int) and step is not None and own > step


def _strict(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
