"""TensorBoard's event files, by torch's writer or by tensorboardX."""

from __future__ import annotations

import io
import time
from typing import Any

import numpy as np

from batteries._optional import import_optional
from batteries.files import PathLike
from batteries.loggers.background import BackgroundLogger, Row


class TensorBoardLogger(BackgroundLogger):
    """Metrics as TensorBoard event files.

    >>> with TensorBoardLogger("runs/digits/tensorboard") as tensorboard:
    ...     tensorboard.log_metrics({"train": {"loss": 0.5}, "lr": 1e-3}, step=1)

    A run that goes on writes into the same directory, and TensorBoard forgets the steps after
    the checkpoint that were there before.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
    """

    _package, _module = "tensorboard", "torch.utils.tensorboard"

    def __init__(self, logdir: PathLike, *, run_id: str | None = None) -> None:
        self._writers = import_optional(self._module, needs=self._package, for_=self._name)
        self._writer: Any = None
        super().__init__(logdir, run_id=run_id)

    def _open(self) -> None:
        purge = None if self._continues is None else self._continues + 1
        # Two writers of the same second would have the same file; readers sort them by name.
        self._writer = self._writers.SummaryWriter(
            str(self.logdir), purge_step=purge, flush_secs=1, filename_suffix=f".{time.time_ns()}"
        )

    def _write_metrics(self, rows: list[Row]) -> None:
        for row in rows:
            for name, value in row.metrics.items():
                self._writer.add_scalar(name, value, row.step, row.time)

    def _write_params(self, params: dict[str, Any]) -> None:
        rows = "".join(f"\n| {name} | {value} |" for name, value in params.items())
        self._writer.add_text("params", f"| name | value |\n| --- | --- |{rows}", 0)

    def _write_figure(self, name: str, png: bytes, step: int) -> None:
        images = import_optional("PIL.Image", needs="pillow", for_="log_figure")
        pixels = np.asarray(images.open(io.BytesIO(png)).convert("RGB"))
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def _write_text(self, name: str, text: str, step: int) -> None:
        self._writer.add_text(name, text, step)

    def _flush(self) -> None:
        self._writer.flush()

    def _close(self) -> None:
        self._writer.close()


class TensorBoardXLogger(TensorBoardLogger):
    """The same files, written by tensorboardX.

    >>> with TensorBoardXLogger("runs/digits/tensorboardx") as tensorboard:
    ...     tensorboard.add_metric("loss", 0.5, global_step=1)

    Raises:
        ModuleNotFoundError: tensorboardX is not installed.
    """

    _package, _module = "tensorboardX", "tensorboardX"

    def add_metric(self, tag: str, value: Any, global_step: int) -> None:
        """`log_metrics` of one number, as the specification spells it."""
        self.log_metrics({tag: value}, global_step)
