"""TensorBoard's event files, made with torch or tensorboardX."""

from __future__ import annotations

import platform
import struct
import time
from typing import Any

from batteries._files import PathLike, Place, append_whole, make_directory
from batteries._optional import import_optional
from batteries.loggers._background import BackgroundLogger, Row
from batteries.loggers._pictures import Histogram, pixels_of

_VERSION = "brain.Event:2"  # TensorBoard expects it at the beginning of a file


class TensorBoardLogger(BackgroundLogger):
    """Writes metrics as TensorBoard event files.

    >>> with TensorBoardLogger("runs/digits/tensorboard") as tensorboard:
    ...     tensorboard.log_metrics({"train": {"loss": 0.5}, "lr": 1e-3}, step=1)

    A resumed run writes a new file into the same directory. TensorBoard then hides the steps of
    older files that come after the checkpoint. After an error of the disk, this logger goes on.
    Torch's `SummaryWriter` does not.

    Args:
        logdir: The directory of the event files.
        run_id: The id in the logger's state. Default: the checkpoint's, else a new one.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
    """

    _package = "tensorboard"
    _modules: tuple[str, ...] = (
        "torch.utils.tensorboard.summary",
        "tensorboard.compat.proto.event_pb2",
        "tensorboard.compat.tensorflow_stub.pywrap_tensorflow",
    )

    _file = Place()

    def __init__(self, logdir: PathLike, *, run_id: str | None = None) -> None:
        self._summary, self._events, sums = (
            import_optional(module, needs=self._package, for_=self._name)
            for module in self._modules
        )
        self._sum = sums.masked_crc32c
        self._born = time.time_ns()
        super().__init__(logdir, run_id=run_id)

    def _open(self) -> None:
        # Two loggers of the same second need different files. Readers sort the files by name.
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
                summary.value[0].tag = name  # tensorboardX would merge "a b" and "a_b"
                self._add(row.step, row.time, summary=summary)

    def _write_params(self, params: dict[str, Any]) -> None:
        rows = "".join(f"\n| {name} | {value} |" for name, value in params.items())
        self._write_text("params", f"| name | value |\n| --- | --- |{rows}", 0)

    def _write_figure(self, name: str, png: bytes, step: int) -> None:
        self._add(step, summary=self._summary.image(name, pixels_of(png), dataformats="HWC"))

    def _write_histogram(self, name: str, histogram: Histogram, step: int) -> None:
        counts, edges, (number, total, squares), _ = histogram
        ends = {"min": edges[0], "max": edges[-1], "num": number, "sum": total}
        own = {"bucket_limits": edges[1:], "bucket_counts": counts, "sum_squares": squares}
        self._add(step, summary=self._summary.histogram_raw(name, **ends, **own))

    def _write_text(self, name: str, text: str, step: int) -> None:
        self._add(step, summary=self._summary.text(name, text))

    def _flush(self) -> None:
        pieces, self._pieces = self._pieces, []
        append_whole(self._file, b"".join(pieces))


class TensorBoardXLogger(TensorBoardLogger):
    """Writes metrics as TensorBoard event files, with tensorboardX.

    >>> with TensorBoardXLogger("runs/digits/tensorboardx") as tensorboard:
    ...     tensorboard.add_metric("loss", 0.5, global_step=1)

    Args:
        logdir: The directory of the event files.
        run_id: The id in the logger's state. Default: the checkpoint's, else a new one.

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
        """Write one number, with the names of tensorboardX's arguments.

        Args:
            tag: The name, such as "train/loss".
            value: A number or a tensor of one element.
            global_step: The `step` of `log_metrics`.

        Raises:
            TypeError: The value is not one number, or the step is no whole number.
        """
        self.log_metrics({tag: value}, global_step)
