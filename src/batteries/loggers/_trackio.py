"""Trackio: a local-first tracker with a dashboard of its own."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from batteries._files import PathLike
from batteries._optional import import_optional
from batteries.loggers._background import BackgroundLogger, Row
from batteries.loggers._pictures import Histogram


class TrackioLogger(BackgroundLogger):
    """Metrics to Trackio, which `trackio show` draws.

    >>> TrackioLogger("runs/digits", project="digits").close()

    Trackio keeps its files where its own variable TRACKIO_DIR says, by default in the cache of
    Hugging Face. The run is called after `logdir` and `run_id`, so a run that goes on is the same
    run there; steps that Trackio has already are not sent again. A run that the program itself has
    begun stays as it is.

    Args:
        project: Whose runs are drawn together.

    Raises:
        ModuleNotFoundError: trackio is not installed; at the first call.
    """

    def __init__(
        self, logdir: PathLike, *, project: str = "batteries", run_id: str | None = None
    ) -> None:
        self._project = project
        super().__init__(logdir, run_id=run_id)

    def _look_around(self) -> None:
        self._trackio: Any = import_optional("trackio", needs="trackio", for_="TrackioLogger")

    def _open(self) -> None:
        self._run_there = self._trackio.init(
            project=self._project,
            name=f"{self.logdir.name or 'run'}-{self.run_id[:8]}",
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        known = getattr(self._run_there, "_next_step", 0) - 1
        self._known = known if self._continues is not None else -1

    def _write_metrics(self, rows: list[Row]) -> None:
        for row in rows:
            if row.step > self._known:
                self._run_there.log(dict(row.metrics), step=row.step)

    def _write_params(self, params: dict[str, Any]) -> None:
        self._run_there.config.update({name: params[name] for name in params})

    def _write_figure(self, name: str, png: bytes, step: int) -> None:
        images = import_optional("PIL.Image", needs="pillow", for_="log_figure")
        pixels = np.asarray(images.open(io.BytesIO(png)).convert("RGB"))
        self._run_there.log({name: self._trackio.Image(pixels)}, step=step)

    def _write_histogram(self, name: str, histogram: Histogram, step: int) -> None:
        both = (np.asarray(histogram.counts), np.asarray(histogram.edges))
        self._run_there.log({name: self._trackio.Histogram(np_histogram=both)}, step=step)

    def _write_text(self, name: str, text: str, step: int) -> None:
        self._run_there.log({name: self._trackio.Markdown(text)}, step=step)

    def _close(self) -> None:
        self._run_there.finish()
