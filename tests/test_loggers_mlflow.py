"""MLflow's own: a server, its names, its places."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import warm
from ranks import DEADLINE
from trackers import new_store, pytestmark, query_mlflow, read_mlflow, read_mlflow_at

from batteries import MLflowLogger
from batteries._files import make_directory

__all__ = ["new_store", "pytestmark"]  # fixtures, and where these tests run


@pytest.fixture
def server(new_store: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a tracking server over SQLite."""
    # What `mlflow server` starts; it would import MLflow once more, to be the parent of this.
    program = [sys.executable, "-m", "uvicorn", "mlflow.server.fastapi_app:app", "--fd=0"]
    env = {
        **os.environ,
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{shutil.copy(new_store, tmp_path)}",
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(tmp_path / "artifacts"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # many more processes
    }
    nowhere = subprocess.DEVNULL
    with socket.socket() as listening:  # so the first request waits until the server has begun
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        uri = f"http://127.0.0.1:{listening.getsockname()[1]}"
        process = warm.Popen(
            program,
            stdin=listening.fileno(),
            stdout=nowhere,
            stderr=nowhere,
            start_new_session=True,
            env=env,
        )
    with process:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=DEADLINE) as reply:
                assert reply.status == 200
            yield uri
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def test_mlflow_server(server: str) -> None:
    """A tracking server has the numbers, the parameters and the state of the run."""
    from mlflow.tracking import MlflowClient

    logger = MLflowLogger("logs", server)
    logger.log_params({"lr": 1e-3})
    logger.log_metrics({"loss": 0.5}, 1)
    state = logger.state_dict()
    logger.log_metrics({"loss": 0.4}, 2)
    with pytest.raises(ZeroDivisionError), logger:
        raise ZeroDivisionError
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("batteries")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.data.params, run.info.status) == ({"lr": "0.001"}, "FAILED")
    again = MLflowLogger("logs", server)
    again.load_state_dict(state)
    with again:
        again.log_params({"lr": 2e-3})  # which MLflow refuses to change
        again.log_metrics({"loss": 0.4}, 2)
        again.log_metrics({"loss": 0.3}, 3)
    [run] = client.search_runs([experiment.experiment_id])
    assert run.data.tags["changed.lr"] == "0.002"
    assert run.info.status == "FINISHED"
    assert query_mlflow(server) == {"loss": [(1, 0.5), (2, 0.4), (3, 0.3)]}


def test_names_that_mlflow_refuses(new_store: Path) -> None:
    """A name that MLflow refuses is written as one that it takes, and costs no other number."""
    shutil.copy(new_store, make_directory("logs"))
    names = ["acc@5", "a//b", "/c", "d/../e", "./f", "g/", "h" * 300, "i:j", "", "loss"]
    with MLflowLogger("logs") as logger:
        logger.log_params(dict.fromkeys(names, 1))
        logger.log_metrics(dict.fromkeys(names, 1), 1)
    found = read_mlflow("logs")
    assert {"acc_5", "a/b", "loss"} < set(found)
    assert list(found.values()) == [[(1, 1.0)]] * len(names)


def test_any_directory_for_mlflow() -> None:
    """MLflow writes below a directory of any name, and into no other."""
    name = "a%20b c?d=1&e#f"
    with MLflowLogger(name) as logger:
        logger.log_metrics({"loss": 0.5}, 1)
        logger.log_text("note/a", "hello", 1)
        logger.log_text("note_a", "hello", 1)
    assert [path.name for path in Path().iterdir()] == [name]
    assert len([*Path(name).rglob("*.txt")]) == 2
    Path("there").symlink_to(name)
    assert read_mlflow_at(Path("there").absolute()) == {"loss": [(1, 0.5)]}


def test_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no server answers, training is not stopped, and the warning says what is lost."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        logger = MLflowLogger("logs", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        logger.log_metrics({"loss": 0.5}, 1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            logger.close()
    assert "MLflowLogger (logs) fails, and training goes on" in str(caught[0].message)
    assert str(caught[1].message) == "MLflowLogger: 1 calls were lost"
