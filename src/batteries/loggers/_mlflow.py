"""MLflow: a local SQLite file, or a tracking server."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from batteries._files import PathLike, locked_directory, make_directory
from batteries._masking import distinct
from batteries._optional import import_optional
from batteries.loggers._background import BackgroundLogger, Row
from batteries.loggers._pictures import Histogram
from batteries.loggers._values import file_name

_TAG = "batteries.run_id"
_REFUSED = re.compile(r"[^\w\-. /]|^[./]|(?<=/)\.+(?=/|$)|/$")  # MLflow makes paths of names
_NAME_TAG = "batteries.name."  # the beginning of tags that hold the names before a change
_UNSAFE = re.compile(r"[^\w./ +@,=:~-]")  # characters with a meaning in a database's address
_PLAIN = re.compile(r"[\w.-]+")
_AT_ONCE = 1000  # MLflow's limit of metrics in a call; of params it is 100


class MLflowLogger(BackgroundLogger):
    """Writes metrics to MLflow.

    >>> mlflow = MLflowLogger("runs/digits", experiment="digits")
    >>> mlflow.close()

    A resumed run is found by its id in the tag `batteries.run_id`, and numbers that MLflow already
    has are not sent again. Characters that MLflow does not allow become _: "acc@5" is "acc_5",
    or "acc_5_2" if another metric has that name. The tag `batteries.name.acc_5` has the old name.
    Names are cut after 200 characters.

    Figures, images, histograms (as JSON) and texts become artifacts. MLflow does not let a
    parameter change: a new value becomes the tag `changed.NAME`.

    If the program has an active run at the first call, and you pass none of `tracking_uri`,
    `experiment` and `run_id`, the logger writes into that run and does not end it. Without an
    active run, it writes into the run that the variable MLFLOW_RUN_ID names, if any, and ends it.

    Args:
        logdir: The place of `mlflow.db` and `mlartifacts` if there is no other address. Its name is
            the run's name.
        tracking_uri: A tracking server, "http://host:5000". Default: the address in
            MLFLOW_TRACKING_URI or of `mlflow.set_tracking_uri`. Without such an address, it is
            `mlflow.db` in `logdir`. But it is MLflow's own default if the program already uses
            MLflow: an active run, a call of `mlflow.set_experiment`, or the variable MLFLOW_RUN_ID
            or MLFLOW_EXPERIMENT_ID.
        experiment: The MLflow experiment of the run. Default: that of `mlflow.set_experiment`,
            MLFLOW_EXPERIMENT_ID or MLFLOW_EXPERIMENT_NAME, else "batteries".
        run_id: The id in the tag `batteries.run_id`, which is not MLflow's own id of the run.
            Default: the checkpoint's, else a new one.

    Raises:
        ModuleNotFoundError: mlflow is not installed.
    """

    def __init__(
        self,
        logdir: PathLike,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        *,
        run_id: str | None = None,
    ) -> None:
        self._tracking = import_optional("mlflow.tracking", for_="MLflowLogger")
        self._entities = import_optional("mlflow.entities", for_="MLflowLogger")
        self._uri = tracking_uri
        self._experiment = experiment
        self._asks = any(asked is not None for asked in (tracking_uri, experiment, run_id))
        self._active: Any = None  # the program's own run
        self._given: str | None = None  # the id of the run that the environment asks for
        self._link: tempfile.TemporaryDirectory[str] | None = None
        super().__init__(logdir, run_id=run_id)

    def _look_around(self) -> None:
        fluent = import_optional("mlflow.tracking.fluent", for_="MLflowLogger")
        self._active = None if self._asks else fluent.active_run()  # of this thread
        ids = [os.environ.get(f"MLFLOW_{name}_ID") for name in ("EXPERIMENT", "RUN")]
        self._given = None if self._asks or self._active else ids[1]
        # Ids belong to the store that MLflow itself would use.
        own = self._active or self._given or (ids[0] and self._experiment is None)
        if self._uri is None and (own or self._tracking.is_tracking_uri_set()):
            self._uri = self._tracking.get_tracking_uri()

    def _open(self) -> None:
        uri, artifacts = self._uri, None
        # This log of MLflow has a line for each new table, and for errors that MLflow also raises.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        if uri is None:
            here = make_directory(self.logdir).resolve()
            artifacts = (here / "mlartifacts").as_uri()
            safe = self._under_another_name(here) if _UNSAFE.search(str(here)) else here
            uri = f"sqlite:///{safe}/mlflow.db"
            _make_store(safe / "mlflow.db", here / "mlartifacts")
        self._client = self._tracking.MlflowClient(uri)
        there = self._active.info.run_id if self._active else self._given
        number = "" if there else self._experiment_id(artifacts)
        run = self._client.get_run(there) if there else self._found(number)
        self._last: dict[str, int] = {}  # the last step of each metric in MLflow
        self._names: dict[str, str] = {}  # the name in MLflow of each logged name
        if run:
            self._run_there = run.info.run_id
            if not self._active:
                self._client.update_run(self._run_there, status="RUNNING")
            # Steps that the program itself logged into its run do not count.
            own = not there or self._continues is not None
            for name in run.data.metrics if own else ():
                history = self._client.get_metric_history(self._run_there, name)
                self._last[name] = max(metric.step for metric in history)
            self._params = dict(run.data.params)
            tags = run.data.tags.items()
            self._names = {v: k[len(_NAME_TAG) :] for k, v in tags if k.startswith(_NAME_TAG)}
        else:
            tags = {_TAG: self.run_id}
            run = self._client.create_run(number, tags=tags, run_name=self.logdir.name or "run")
            self._run_there, self._params = run.info.run_id, {}

    def _experiment_id(self, artifacts: str | None) -> str:
        name = self._experiment
        if name is None:
            number = os.environ.get("MLFLOW_EXPERIMENT_ID")
            if number and artifacts is None:
                return number
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "batteries"
        found = self._client.get_experiment_by_name(name)
        made = found.experiment_id if found else self._client.create_experiment(name, artifacts)
        return str(made)

    def _under_another_name(self, directory: Path) -> Path:
        """A link to a directory whose name is not allowed in the address of a database."""
        self._link = tempfile.TemporaryDirectory(prefix="batteries-")
        link = Path(self._link.name, "logdir")
        link.symlink_to(directory, target_is_directory=True)
        return link

    def _found(self, experiment: str) -> Any:
        """The run with our id, or None."""
        if _PLAIN.fullmatch(self.run_id):
            runs = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{self.run_id}'")
            return runs[0] if runs else None
        token = None  # a filter allows only some characters
        while True:
            runs = self._client.search_runs([experiment], page_token=token)
            for run in runs:
                if run.data.tags.get(_TAG) == self.run_id:
                    return run
            if not (token := runs.token):
                return None

    def _allowed(self, names: Iterable[str]) -> dict[str, str]:
        """A different name in MLflow for each logged name."""
        for name in names:
            if name not in self._names:
                cleaned = _REFUSED.sub("_", re.sub("/+", "/", name))[:200] or "_"
                own = distinct(cleaned, self._names.values(), "{}_{}")
                if own != name:
                    self._client.set_tag(self._run_there, f"{_NAME_TAG}{own}", name)
                self._names[name] = own
        return self._names

    def _write_metrics(self, rows: list[Row]) -> None:
        allowed = self._allowed(name for row in rows for name in row.metrics)
        metrics = [
            self._entities.Metric(allowed[name], value, round(row.time * 1000), row.step)
            for row in rows
            for name, value in row.metrics.items()
            if row.step > self._last.get(allowed[name], row.step - 1)
        ]
        for part in _parts(metrics, _AT_ONCE):
            self._client.log_batch(self._run_there, metrics=part)

    def _write_params(self, params: dict[str, Any]) -> None:
        # MLflow does not let a parameter change: a changed value becomes a tag.
        allowed = self._allowed(params)
        params = {allowed[name]: value for name, value in params.items()}
        new = {name: str(value) for name, value in params.items() if name not in self._params}
        entries = [self._entities.Param(name, value) for name, value in new.items()]
        for part in _parts(entries, 100):
            self._client.log_batch(self._run_there, params=part)
        for name, value in params.items():
            if self._params.get(name, str(value)) != str(value):
                self._client.set_tag(self._run_there, f"changed.{name}", str(value))
        self._params |= new

    def _write_figure(self, name: str, png: bytes, step: int) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / f"{file_name(name)}_{step}.png"
            path.write_bytes(png)
            self._client.log_artifact(self._run_there, str(path), "figures")

    def _write_histogram(self, name: str, histogram: Histogram, step: int) -> None:
        file = f"histograms/{file_name(name)}_{step}.json"  # MLflow draws no histograms
        self._client.log_dict(self._run_there, histogram.plain(), file)

    def _write_text(self, name: str, text: str, step: int) -> None:
        self._client.log_text(self._run_there, text, f"texts/{file_name(name)}_{step}.txt")

    def _close(self) -> None:
        if not self._active:
            self._client.set_terminated(self._run_there, "FAILED" if self._failed else "FINISHED")
        if self._link is not None:
            self._link.cleanup()


def _make_store(path: Path, artifacts: Path) -> None:
    """Create an SQLite file under another name, and rename it when it has all its tables.

    MLflow creates the tables in dozens of steps, and cannot open a file without some of them.
    """
    module = "mlflow.store.tracking.sqlalchemy_store"
    stores = import_optional(module, needs="mlflow", for_="MLflowLogger")
    # The lock is on the artifacts' directory, which no other code locks.
    with locked_directory(make_directory(artifacts), timeout=600):
        for leftover in path.parent.glob(f".{path.name}.*"):
            leftover.unlink()
        if not path.exists():
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            stores.SqlAlchemyStore(f"sqlite:///{temporary}", artifacts.as_uri()).engine.dispose()
            temporary.replace(path)


def _parts(values: list[Any], length: int) -> Iterator[list[Any]]:
    return (values[start : start + length] for start in range(0, len(values), length))
