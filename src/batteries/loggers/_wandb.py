"""Weights & Biases, offline by default."""

from __future__ import annotations

import html
import io
import os
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from batteries._files import PathLike, make_directory
from batteries._masking import distinct, masked_command
from batteries._optional import import_optional
from batteries.loggers._background import BackgroundLogger, Row
from batteries.loggers._pictures import Histogram

_HEADER, _BLOCK = 7, 32768  # bytes in the files that wandb writes offline
_SECOND = "%Y%m%d_%H%M%S"
_SETTLE = 5.0  # seconds after a run's end, in which wandb's server may still write
_STEP = "global_step"
_INTERVAL = "x_transaction_log_flush_interval"  # 15 seconds by default, and not before 0.31
_BARE = "x_disable_meta"  # leaves out the command line, which may hold secrets


class WandbLogger(BackgroundLogger):
    """Writes metrics to Weights & Biases.

    >>> wandb = WandbLogger("runs/digits", project="digits")
    >>> wandb.close()

    The step is the metric `global_step`, over which W&B draws its charts. Your own metric of that
    name becomes "metrics/global_step". Names that begin with _, which W&B reserves, get the same
    prefix. The first call waits until W&B has begun the run.

    Before version 0.31, wandb keeps up to 32 KiB of rows in memory if it is offline. A SIGKILL
    loses them.

    A resumed run keeps its id, and what W&B already has for a step is not written again. Offline,
    each start makes a new directory in `logdir`/wandb. `wandb sync` adds this directory to the run.

    If the program has an active run at the first call, and you pass none of `project`, `mode` and
    `run_id`, the logger writes into that run and does not finish it. In such a program, do not
    pass W&B's own `step=`, because W&B's step counts the logger's rows, too. Call `wandb.init()`
    before the logger's first call. A later `wandb.init()` returns the logger's run, which ends with
    the logger.

    Args:
        logdir: W&B's files are in `logdir`/wandb. Its name is the run's name, unless the variable
            WANDB_NAME has another one.
        project: Default: the variable WANDB_PROJECT, else "batteries".
        mode: "offline" writes files; "online" sends them. Default: the variable WANDB_MODE, else
            "offline".
        run_id: Default: the checkpoint's id, else the variable WANDB_RUN_ID, else a new one.

    Raises:
        ModuleNotFoundError: wandb is not installed.
    """

    # wandb starts threads. From Python 3.12 on, this is not possible at the end of a program.
    _opens_at_once = True

    def __init__(
        self,
        logdir: PathLike,
        project: str | None = None,
        *,
        mode: Literal["offline", "online"] | None = None,
        run_id: str | None = None,
    ) -> None:
        self._wandb = import_optional("wandb", for_="WandbLogger")
        self._mode = mode or os.environ.get("WANDB_MODE", "offline")
        self._project = project or os.environ.get("WANDB_PROJECT", "batteries")
        self._asks = any(asked is not None for asked in (project, mode, run_id))
        super().__init__(logdir, run_id=run_id or os.environ.get("WANDB_RUN_ID"))

    def _open(self) -> None:
        active = self._wandb.run
        self._is_guest = active is not None and not self._asks
        self._run_there = active if self._is_guest else self._begun(beside=active is not None)
        self.run_id = self._run_there.id  # an agent of a sweep chooses the id
        self._file = Path(self._run_there.dir).parent / f"run-{self.run_id}.wandb"
        self._rows = 0
        self._drawn: set[str] = set()
        if not self._is_guest:
            # With wandb's own step, a row is written only when the next step begins, and a kill
            # would lose it.
            self._run_there.define_metric("*", step_metric=_STEP)
        self._last = _last_steps(self._file.parents[1], self.run_id)
        self._last_of_others = -1
        if not self._run_there.offline:  # the server may have fewer steps than the files
            there = self._run_there.summary.get(_STEP, -1)
            self._last_of_others = -1 if self._last else there
            self._last = {name: min(step, there) for name, step in self._last.items()}

    def _begun(self, beside: bool) -> Any:
        directory = make_directory(self.logdir).resolve()  # wandb's server has another cwd
        # wandb names a session's files by the second, and would overwrite those of another session.
        while [*directory.glob(f"wandb/*run-{time.strftime(_SECOND)}-{self.run_id}")]:
            time.sleep(0.1)
        known = self._wandb.Settings.model_fields
        options: dict[str, Any] = {_INTERVAL: 0.5, _BARE: masked_command(sys.argv) != sys.argv}
        options = {name: value for name, value in options.items() if name in known}
        return self._wandb.init(
            project=self._project,
            dir=str(directory),
            id=self.run_id,
            name=os.environ.get("WANDB_NAME") or self.logdir.name,
            mode=self._mode,
            resume="allow" if self._mode == "online" else None,
            reinit="create_new" if beside else None,
            settings=self._wandb.Settings(console="off", silent=True, **options),
        )

    def _write_metrics(self, rows: list[Row]) -> None:
        for row in rows:
            self._log(_named(row.metrics), row.step)

    def _write_params(self, params: dict[str, Any]) -> None:
        self._run_there.config.update(params, allow_val_change=True)

    def _write_figure(self, name: str, png: bytes, step: int) -> None:
        images = import_optional("PIL.Image", needs="pillow", for_="log_figure")
        picture = self._wandb.Image(images.open(io.BytesIO(png)))
        self._log(_named({name: picture}), step)

    def _write_histogram(self, name: str, histogram: Histogram, step: int) -> None:
        both = (histogram.counts, histogram.edges)
        self._log(_named({name: self._wandb.Histogram(np_histogram=both)}), step)

    def _write_text(self, name: str, text: str, step: int) -> None:
        page = self._wandb.Html(f"<pre>{html.escape(text)}</pre>")
        self._log(_named({name: page}), step)

    def _log(self, values: dict[str, Any], step: int) -> None:
        if self._continues is not None and self._continues < step:
            last, others = self._last, self._last_of_others
            values = {n: v for n, v in values.items() if step > last.get(n, others)}
        if not values:
            return
        for name in [*values] if self._is_guest else ():
            if name not in self._drawn:
                self._run_there.define_metric(name, step_metric=_STEP)
                self._drawn.add(name)
        self._run_there.log({**values, _STEP: step})
        self._rows += 1

    def _close(self) -> None:
        if self._is_guest:
            return
        self._run_there.finish(exit_code=int(self._failed))
        if self._mode == "offline":  # wandb's server does not report a full disk
            lost = self._missing()
            deadline = time.monotonic() + _SETTLE
            while lost and time.monotonic() < deadline:
                time.sleep(0.1)
                lost = self._missing()
            if lost:
                self._lost += lost
                rows = f"{self._rows - lost} of {self._rows} rows"
                raise OSError(f"wandb has written {rows}: is the disk full?")

    def _missing(self) -> int:
        records = read_offline(self._file)
        return self._rows - len([each for each in records if each.HasField("history")])


def _named(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics without names that W&B reserves."""
    own = [name for name in metrics if name == _STEP or name.startswith("_")]
    if not own:
        return metrics
    return {
        distinct(f"metrics/{name}", metrics) if name in own else name: value
        for name, value in metrics.items()
    }


def _last_steps(directory: Path, run_id: str) -> dict[str, int]:
    """The last step of each metric in the files of a run."""
    last: dict[str, int] = {}
    for file in directory.glob(f"*run-*-{run_id}/run-{run_id}.wandb"):
        for record in read_offline(file):
            items = record.history.item
            row = {item.key or "/".join(item.nested_key): item.value_json for item in items}
            step = int(row.get(_STEP, -1))
            pictures = [item.nested_key[0] for item in items if item.nested_key]
            last.update({name: max(step, last.get(name, -1)) for name in [*row, *pictures]})
    return last


def read_offline(path: PathLike) -> list[Any]:
    """The records of a file that wandb wrote offline, up to the first torn one."""
    messages = import_optional("wandb.proto.wandb_internal_pb2", for_="read_offline")
    records: list[Any] = []
    for data in _logged(Path(path).read_bytes()):
        record = messages.Record()
        record.ParseFromString(data)
        records.append(record)
    return records


def _logged(data: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, which begins with 7 bytes of wandb.

    Blocks of 32 KiB hold parts of records. Each part has a header of 7 bytes: a checksum, the
    length, and the kind: a whole record (1), or its beginning, middle or end (2, 3, 4).
    """
    start, record = _HEADER, b""
    while start + _HEADER <= len(data):
        if _BLOCK - start % _BLOCK < _HEADER:  # the rest of a block is empty if no header fits
            start += _BLOCK - start % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, start)
        start += _HEADER
        if not 1 <= kind <= 4 or start + length > len(data):  # torn
            return
        record += data[start : start + length]
        start += length
        if kind in (1, 4):
            yield record
            record = b""
