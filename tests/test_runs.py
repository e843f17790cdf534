"""The one reader of runs: its tables, filters, orders and groups."""

from __future__ import annotations

import json
import math
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from test_scoreboard import add_stage, make_run

from batteries import JsonLinesLogger, start_run
from batteries._rundir.lines import read_lines
from batteries.scoreboard import RunInfo, Runs, read_run, read_runs, record_scores

LOSS = {"loss": True}


def log_run(args: dict[str, Any], losses: list[float], logdir: str = "runs") -> Path:
    """A run without a CheckpointManager."""
    with start_run(logdir, args, new=True) as run, JsonLinesLogger(run) as lines:
        for step, loss in enumerate(losses, start=1):
            lines.log_metrics({"valid": {"loss": loss}, "lr": 0.5 / step}, step)
    return run.path


def test_a_table() -> None:
    """A run without checkpoints has its arguments, and of each metric its last and its best."""
    log_run({"lr": 0.1, "model": {"width": 8}, "state": "new"}, [0.5, 0.3, 0.4])
    log_run({"lr": 1, "tags": ["a"]}, [0.9, math.nan])
    runs = read_runs("runs", metric_minimization={"valid/loss": True})
    first, second = runs.rows()
    assert (first["lr"], first["model.width"], first["args.state"]) == (0.1, 8, "new")
    told = [first[f"valid/loss.{end}"] for end in ("last", "best", "best_step")]
    assert told == [0.4, 0.3, 2]
    assert (second["valid/loss.best"], second["tags"], second["model.width"]) == (
        0.9,
        "['a']",
        None,
    )
    assert math.isnan(second["valid/loss.last"])
    assert first["lr.best"] is None  # nothing says whether lower is better
    assert first["bytes"] == sum(path.stat().st_size for path in Path("runs/001").iterdir())
    table = runs.table()
    assert table["lr"].dtype == pl.Float64
    assert table["run"].to_list() == ["001", "002"]
    assert table["started"].dtype == pl.Datetime("us", "UTC")
    assert table.columns == runs.columns == list(first)


def test_all_lines() -> None:
    """The long frame has every value of every run; a step that came again has its last value."""
    path = log_run({}, [0.5, 0.3])
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "time": 9, "metrics": {"valid/loss": 0.7}}\n{"torn')
    runs = read_runs("runs")
    frame = runs.metrics().filter(metric="valid/loss")
    assert frame["value"].to_list() == [0.7, 0.3]
    assert frame["step"].to_list() == [1, 2]
    assert set(runs.metrics()["metric"]) == {"valid/loss", "lr"}
    assert runs[0].problems == [
        "runs/001/metrics.jsonl: the last line is incomplete, and is left out"
    ]


def test_filters_with_types() -> None:
    """Conditions compare numbers as numbers; text against a number is an error that says so."""
    for lr, name, amp in ((0.1, "adam", True), (0.01, "sgd", False), (1, "10", True)):
        log_run({"lr": lr, "opt": name, "amp": amp}, [lr])
    runs = read_runs("runs", metric_minimization=LOSS)

    def found(*conditions: str) -> list[str]:
        return [run.name for run in runs.where(*conditions)]

    assert found("lr=1e-1") == ["001"]
    assert found("lr>=0.1", "amp=true") == ["001", "003"]
    assert found("valid/loss < 0.05") == ["002"]
    assert found("valid/loss.last==0.1") == ["001"]
    assert found("opt=10") == found('opt="10"') == ["003"]
    assert found("opt!=adam") == ["002", "003"]
    assert found("run~^00[12]$", "test=") == ["001", "002"]
    assert found("test!=") == []
    text = r"compares opt, which is text \(such as 'adam'\), with 3.0, which is a number"
    with pytest.raises(ValueError, match=text):
        found("opt<3")
    with pytest.raises(ValueError, match="with 'fast', which is text"):
        found("lr=fast")
    with pytest.raises(KeyError, match="no column 'wide'"):
        found("wide=1")
    with pytest.raises(ValueError, match="'lr' is not a condition: expected COLUMN"):
        found("lr")


def test_a_large_seed() -> None:
    """A condition finds a seed that a float cannot hold, and no seed beside it."""
    paths = [log_run({"seed": seed}, [0.5]) for seed in (2**53 + 1, 2**64 - 1)]
    runs = Runs(paths)
    assert [run.path for run in runs.where(f"seed={2**53 + 1}")] == paths[:1]
    assert [run.path for run in runs.where(f"seed={2**64 - 1}")] == paths[1:]
    assert not runs.where(f"seed={2**53}")


def test_orders() -> None:
    """Best first is by the metric's own direction; the last and the best have other winners."""
    for losses in ([0.5, 0.1, 0.6], [0.3, 0.4, 0.2], [math.nan]):
        log_run({}, losses)
    runs = read_runs("runs", metric_minimization=LOSS)
    assert [run.name for run in runs.best_first("valid/loss")] == ["001", "002", "003"]
    assert [run.name for run in runs.best_first("valid/loss.last")] == ["002", "001", "003"]
    assert [run.name for run in runs.sorted("run", descending=True)] == ["003", "002", "001"]
    with pytest.raises(ValueError, match="it is not known whether lower valid/loss is bet"):
        read_runs("runs").best_first("valid/loss")


def test_groups() -> None:
    """A group has the moments of its values, as statistics has them, and counts all runs."""
    scores = {0.1: [0.5, 0.7, 0.6], 0.2: [0.9], 0.3: [math.inf]}
    for lr, some in scores.items():
        for seed, loss in enumerate(some):
            log_run({"lr": lr, "seed": seed}, [loss])
    first, second, third = read_runs("runs", metric_minimization=LOSS).groups(
        "lr", of="valid/loss.last"
    )
    assert first["mean"] == pytest.approx(0.6)
    assert first["std"] == pytest.approx(statistics.stdev(scores[0.1]))
    assert first["sem"] == pytest.approx(first["std"] / math.sqrt(3))
    assert [first[name] for name in ("count", "median", "min", "max")] == [3, 0.6, 0.5, 0.7]
    assert (second["count"], second["std"]) == (1, None)
    assert (third["runs"], third["count"], third["mean"]) == (1, 0, None)


def test_folds_together() -> None:
    """Validation of a k-fold run is that of all folds, and it is said of what."""
    path = make_run([])
    for fold, best in enumerate((0.9, 0.8, 0.7)):
        add_stage(path, [0.5, best], "accuracy", f"fold_{fold}")
    [run] = read_runs("runs")
    row = run.row()
    assert row["validation"] == pytest.approx(0.8)
    assert (row["validation of"], row["spread"]) == ("mean of 3 folds", pytest.approx(0.1))
    record_scores(path, validation=0.79, folds=[0.9, 0.8, 0.7])
    [run] = read_runs("runs")
    assert (run.row()["validation"], run.row()["validation of"]) == (0.79, "out-of-fold")


def test_a_recorded_validation_score() -> None:
    """The table says that a validation score was recorded."""
    record_scores(make_run([]), validation=0.9, metric="auc", metric_minimization=False)
    [run] = read_runs("runs")
    assert (run.row()["validation"], run.row()["validation of"]) == (0.9, "recorded")


def test_scores_without_checkpoints() -> None:
    """The score of a run is known when somebody has removed its checkpoints."""
    path = make_run([0.8, 0.9, 0.7])
    before = read_runs("runs")[0].row()
    shutil.rmtree(path / "checkpoints")
    after = read_runs("runs")[0].row()
    assert (after["validation"], after["epoch"], after["epochs"]) == (0.9, 2, 3)
    assert {**after, "bytes": 0} == {**before, "bytes": 0}


@pytest.mark.parametrize("name", ["scores.json", "metrics.json"])
def test_files_of_a_run_in_the_log_directory(name: str) -> None:
    """A score or a checkpoint that was saved into the log directory by mistake hides no run."""
    for score in (0.5, 0.6):
        make_run([score])
    shutil.copy("runs/001/checkpoints/metrics.json", f"runs/{name}")
    assert {"001", "002"} <= {run.name for run in read_runs("runs")}
    with pytest.raises(
        ValueError, match=r"runs is no run, but has runs, such as runs.00.; pass one"
    ):
        record_scores("runs", test=0.5)


def test_without_polars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows need no polars; a table says how to install it."""
    log_run({"lr": 0.1}, [0.5])
    monkeypatch.setitem(sys.modules, "polars", None)
    runs = read_runs("runs")
    assert runs.rows()[0]["lr"] == 0.1
    with pytest.raises(ModuleNotFoundError, match=r"Runs\.table needs polars.*pip install polars"):
        runs.table()


def test_lines_that_look_whole_together() -> None:
    """Lines are read one by one where any of them is foreign, and each foreign one is counted."""
    good = json.dumps({"step": 1, "metrics": {"loss": 0.5}})
    Path("run").mkdir()
    Path("run/metrics.jsonl").write_text('{"a": [{}\n{"b": 1}]}\n' + good + "\n[1]\n")
    run = RunInfo("run", Path("run"))
    assert list(run.series()["loss"].values) == [0.5]
    assert run.problems == ["run/metrics.jsonl: 3 lines are not JSON objects, and are left out"]


def test_directions_that_contradict() -> None:
    """Where two runs say opposite directions of a metric, none is known."""
    make_run([0.5], metric="score")
    make_run([0.5], metric="score", minimization=True)
    runs = read_runs("runs")
    assert runs.lower_is_better("valid/score") is None
    assert Runs(runs, {"score": True}).lower_is_better("valid/score") is True


def test_lines_are_read_together() -> None:
    """Many lines read together, with odd ones among them, have the values of each line alone."""
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/run.json").write_text('{"sessions": [{}]}')
    odd = [
        '{"step": %d, "time": 2.5, "metrics": {"b": 2, "a": 1}}',  # another order
        '{"step":%d,"time":2.5,"metrics":{"a":1,"b":2}}',
        '{"step": %d, "time": 2.5, "metrics": {"a": null, "b": 1}, "not_finite": {"a": "-inf"}}',
        '{"step": %d, "time": 2.5, "metrics": {"a": true, "b": 1}}',
        '{"step": %d, "time": 2.5, "metrics": {"a": 1e999, "b": -0.0}}',
        '{"step": %d, "time": 2.5, "metrics": {"a": 1.0, "b": 01}}',
        '{"step": %d, "time": 2.5, "metrics": {"a": 1.0, "b": 1-2}}',
        '{"step": 9%d9e20, "time": 2.5, "metrics": {"a": 1.0, "b": 2}}',
        '{"step": %d, "time": 2.5, "metrics": {"\\"é": 0.1, "b": 1E-7}}',
        'x{"step": %d, "time": 2.5, "metrics": {"a": 1.0, "b": 2}}',
    ]
    usual = '{"step": %d, "time": 1.5, "metrics": {"a": 0.12345678901234567, "b": -3}}'
    kinds = [[usual] * 40, *([kind] * 40 for kind in odd), [usual, *odd] * 20]
    for number, some in enumerate(kinds):
        text = "".join(f"{line % (step // 2)}\n" for step, line in enumerate(some))
        Path("runs/a/metrics.jsonl").write_text(text)
        expected: dict[str, dict[float, float]] = {}
        for line in read_lines("runs/a"):
            for name, value in line["metrics"].items():
                if line["step"] < 2**53:
                    expected.setdefault(name, {})[line["step"]] = float(value)
        series = read_run("runs/a").series()
        found = {n: dict(zip(s.steps, s.values, strict=True)) for n, s in series.items()}
        assert found == expected, number
