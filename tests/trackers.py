"""What trackers have, as their own readers tell, and what their tests share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from ranks import DEADLINE
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from batteries import (
    JsonLinesLogger,
    MLflowLogger,
    TensorBoardLogger,
    TensorBoardXLogger,
    WandbLogger,
)
from batteries._files import make_directory
from batteries.distributed import _waiting
from batteries.loggers import read_lines
from batteries.loggers._wandb import read_offline

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


Scalars = dict[str, list[tuple[int, Any]]]  # step and value, by name


def read_events(logdir: str | Path) -> Scalars:
    events = EventAccumulator(str(logdir)).Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def read_json(logdir: str | Path) -> Scalars:
    found: Scalars = {}
    for line in read_lines(logdir):
        for name, value in line.get("metrics", {}).items():
            found.setdefault(name, []).append((line["step"], value))
    return found


def read_wandb(logdir: str | Path) -> Scalars:
    found: Scalars = {}
    for path in sorted(Path(logdir).glob("wandb/offline-run-*/*.wandb")):
        for record in read_offline(path):
            items = record.history.item
            row = {item.key or "/".join(item.nested_key): item.value_json for item in items}
            step = json.loads(row.pop("global_step", "0"))
            for name, value in row.items():
                if not name.startswith(("_", "note")):
                    found.setdefault(name, []).append((step, json.loads(value)))
    return found


def read_mlflow(logdir: str | Path) -> Scalars:
    return read_mlflow_at(Path(logdir).resolve())


def read_mlflow_at(logdir: Path) -> Scalars:
    path = logdir / "mlflow.db"
    return query_mlflow(f"sqlite:///{path}") if path.exists() else {}  # MLflow would create it


def query_mlflow(uri: str) -> Scalars:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("batteries")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    if not runs:
        return {}
    [run] = runs
    found: Scalars = {}
    for name in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, name)
        found[name] = sorted((metric.step, metric.value) for metric in history)
    return found


READERS: dict[Any, Callable[[str | Path], Scalars]] = {
    JsonLinesLogger: read_json,
    TensorBoardLogger: read_events,
    TensorBoardXLogger: read_events,
    WandbLogger: read_wandb,
    MLflowLogger: read_mlflow,
}
# wandb before 0.31 keeps rows in memory until they fill 32 KiB, and cannot be told not to.
_FLUSHES = bool(find_spec("wandb")) and tuple(map(int, version("wandb").split(".")[:2])) >= (0, 31)
AT_ONCE = {kind: read for kind, read in READERS.items() if kind is not WandbLogger or _FLUSHES}


each_logger = pytest.mark.parametrize(
    ("kind", "read"), [pytest.param(*item, id=item[0].__name__) for item in READERS.items()]
)


def all_of_them(root: str | Path) -> list[Any]:
    return [kind(Path(root, kind.__name__)) for kind in READERS]


@pytest.fixture(scope="session")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def _with_a_store(request: pytest.FixtureRequest) -> None:
    """MLflow takes seconds to make a store: here is one, without a run, for its logger."""
    if request.getfixturevalue("kind") is MLflowLogger:
        shutil.copy(request.getfixturevalue("new_store"), make_directory("logs"))


def wait_until(condition: Callable[[], Any]) -> None:
    assert _waiting.wait_until(lambda: bool(condition()), DEADLINE)
