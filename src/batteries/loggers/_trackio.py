"""Trackio: a local tracker with its own dashboard."""

from __future__ import annotations

from typing import Any

import numpy as np

from batteries._files import PathLike
from batteries._optional import import_optional
from batteries.loggers._background import BackgroundLogger, Row
from batteries.loggers._pictures import Histogram, pixels_of


class TrackioLogger(BackgroundLogger):
    """Writes metrics to Trackio; `trackio show` draws them.

    >>> TrackioLogger("runs/digits", project="digits").close()

    Trackio keeps its files in TRACKIO_DIR, by default in the cache of Hugging Face. The run's name
    is made of `logdir` and `run_id`, so a resumed run continues under the same name. Metrics of
    steps that Trackio already has are not sent again. Images, histograms and texts are sent again,
    so Trackio may have them twice for a step. A run that the program itself has begun is not
    changed.

    Args:
        logdir: Its name is the beginning of the run's name. Nothing is written into it.
        project: The project of the run, whose runs are drawn together.
        run_id: Default: the checkpoint's, else a new one.

    Raises:
        ModuleNotFoundError: trackio is not installed. The first call raises it.
    """

    def __init__(
        self, logdir: PathLike, *, project: str = "batteries", run_id: str | None = None
    ) -> None:
        self._project = project
        super().__init__(logdir, run_id=run_id)

    def _look_around(self) -> None:
        self._trackio: Any = import_optional("trackio", for_="TrackioLogger")

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
        self._run_there.config.update(params)

    def _write_figure(self, name: str, png: bytes, step: int) -> None:
        self._run_there.log({name: self._trackio.Image(pixels_of(png))}, step=step)

    def _write_histogram(self, name: str, histogram: Histogram, step: int) -> None:
        both = (np.asarray(histogram.counts), np.asarray(histogram.edges))
        self._run_there.log({name: self._trackio.Histogram(np_histogram=both)}, step=step)

    def _write_text(self, name: str, text: str, step: int) -> None:
        self._run_there.log({name: self._trackio.Markdown(text)}, step=step)

    def _close(self) -> None:
        self._run_there.finish()
