"""TensorBoard's event files, of torch's events or tensorboardX's."""

from __future__ import annotations

import io
import platform
import struct
import time
from typing import Any

import numpy as np

from batteries._files import PathLike, append_whole, make_directory
from batteries._optional import import_optional
from batteries.loggers._background import BackgroundLogger, Row
from batteries.loggers._pictures import Histogram

_VERSION = "brain.Event:2"  # what TensorBoard expects first in a file


class TensorBoardLogger(BackgroundLogger):
    """Metrics as TensorBoard event files.

    >>> with TensorBoardLogger("runs/digits/tensorboard") as tensorboard:
    ...     tensorboard.log_metrics({"train": {"loss": 0.5}, "lr": 1e-3}, step=1)

    A run that goes on writes into the same directory, and TensorBoard forgets the steps after
    the checkpoint that were there before.

    The events are made by `torch.utils.tensorboard`, and written here: its `SummaryWriter` has a
    thread that ends with the first error of the disk, and is dead when there is room again.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
    """

    _package = "tensorboard"
    _modules: tuple[str, ...] = (
        "torch.utils.tensorboard.summary",
        "tensorboard.compat.proto.event_pb2",
        "tensorboard.compat.tensorflow_stub.pywrap_tensorflow",
    )

    def __init__(self, logdir: PathLike, *, run_id: str | None = None) -> None:
        self._summary, self._events, sums = (
            import_optional(module, needs=self._package, for_=self._name)
            for module in self._modules
        )
        self._sum = sums.masked_crc32c
        self._born = time.time_ns()
        super().__init__(logdir, run_id=run_id)

    def _open(self) -> None:
        # Two of the same second must not have the same file; readers sort them by name.
        name = f"events.out.tfevents.{self._born // 10**9}.{platform.node()}.{self._born}"
        self._file = make_directory(self.logdir) / name
        self._pieces: list[bytes] = []
        self._add(file_version=_VERSION)
        if self._continues is not None:
            start = self._events.SessionLog(status=self._events.SessionLog.START)
            self._add(step=self._continues + 1, session_log=start)
        self._flush()

    def _add(self, step: int = 0, wall_time: float | None = None, **what: Any) -> None:
        event = self._events.Event(step=step, wall_time=wall_time or time.time(), **what)
        data: bytes = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        self._pieces += [length, self._sealed(length), data, self._sealed(data)]

    def _sealed(self, data: bytes) -> bytes:
        return struct.pack("<I", self._sum(data))

    def _write_metrics(self, rows: list[Row]) -> None:
        for row in rows:
            for name, value in row.metrics.items():
                summary = self._summary.scalar(name, value)
                summary.value[0].tag = name  # tensorboardX makes one of "a b" and "a_b"
                self._add(row.step, row.time, summary=summary)

    def _write_params(self, params: dict[str, Any]) -> None:
        rows = "".join(f"\n| {name} | {value} |" for name, value in params.items())
        self._write_text("params", f"| name | value |\n| --- | --- |{rows}", 0)

    def _write_figure(self, name: str, png: bytes, step: int) -> None:
        images = import_optional("PIL.Image", needs="pillow", for_="log_figure")
        pixels = np.asarray(images.open(io.BytesIO(png)).convert("RGB"))
        self._add(step, summary=self._summary.image(name, pixels, dataformats="HWC"))

    def _write_histogram(self, name: str, histogram: Histogram, step: int) -> None:
        edges, counts, (number, total, squares) = (
            histogram.edges,
            histogram.counts,
            histogram.moments,
        )
        ends = {"min": edges[0], "max": edges[-1], "num": number, "sum": total}
        own = {"bucket_limits": edges[1:], "bucket_counts": counts, "sum_squares": squares}
        self._add(step, summary=self._summary.histogram_raw(name, **ends, **own))

    def _write_text(self, name: str, text: str, step: int) -> None:
        self._add(step, summary=self._summary.text(name, text))

    def _flush(self) -> None:
        pieces, self._pieces = self._pieces, []
        append_whole(self._file, b"".join(pieces))


class TensorBoardXLogger(TensorBoardLogger):
    """The same files, of tensorboardX's events.

    >>> with TensorBoardXLogger("runs/digits/tensorboardx") as tensorboard:
    ...     tensorboard.add_metric("loss", 0.5, global_step=1)

    Raises:
        ModuleNotFoundError: tensorboardX is not installed.
    """

    _package = "tensorboardX"
    _modules = (
        "tensorboardX.summary",
        "tensorboardX.proto.event_pb2",
        "tensorboardX.record_writer",
    )

    def add_metric(self, tag: str, value: Any, global_step: int) -> None:
        """`log_metrics` of one number, as the specification spells it."""
        self.log_metrics({tag: value}, global_step)
