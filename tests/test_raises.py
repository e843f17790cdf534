"""Each error that the `Raises:` section of a public function names comes, with this type."""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import batteries
from batteries import (
    AverageMeter,
    EarlyStopping,
    JsonLinesLogger,
    Loggers,
    PreemptionGuard,
    Run,
    blend,
    get_logger,
    loggers,
    report,
    rng_state,
    run_directory,
    scoreboard,
    seed_all,
    seed_worker,
    set_backends,
    set_rng_state,
    splits,
    start_run,
    to_device,
)
from batteries._rundir.record import hold

NAN, ANY = float("nan"), object()
A: Any = [[0.1, 0.2], [0.3, NAN]]
TEXTS: Any = [["x"], ["y"]]
OOF: dict[str, Any] = {"a": [0.1, 0.9, 0.8, 0.2] * 9, "b": [0.5] * 36}
Y = [0, 1, 1, 0] * 9
FOUND = blend.find_weights(OOF, Y, "auc")
STACK = blend.stack(OOF, Y, LogisticRegression())
CUTS = blend.find_thresholds(OOF["a"], Y, "accuracy")
FOLDS = splits.Folds(np.array([0, 1] * 18), "kfold")
HALF = splits.OutOfFold(FOLDS, allow_missing=True)
HALF.add(0, np.zeros(18))
TABLE = {"x": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
RUN = scoreboard.RunInfo("1", Path("1"))
RUNS = scoreboard.Runs([RUN])
FIVE = [
    scoreboard.RunInfo(str(i), Path(str(i)), scores={"validation": i / 9, "test": i / 9})
    for i in range(5)
]
FOLDED = [
    scoreboard.RunInfo(str(i), Path(str(i)), scores={"folds": [0.1, 0.2 * i]}) for i in (1, 2)
]
LOOK = splits.look(TABLE, TABLE)
CORRELATION = blend.correlation([[0.1, 0.2], [0.3, 0.2]])


def lines() -> JsonLinesLogger:
    return JsonLinesLogger("lines")


def begun() -> JsonLinesLogger:
    begun = lines()
    begun.log_metrics({"a": 1.0}, 1)
    return begun


def replaced() -> None:
    start_run("runs").close()
    hold("runs/001", "an older session")
    scoreboard.record_scores("runs/001", test=0.5)


def guard_in_a_thread() -> None:
    raised: list[BaseException] = []

    def enter() -> None:
        try:
            PreemptionGuard().__enter__()
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    raise raised[0]


def of_sizes(y: Any, p: Any) -> Any:
    return np.array([len(y), len(p)])


def within(call: Callable[[Run], Any]) -> None:
    with start_run("runs") as run:
        call(run)


def words() -> splits.OutOfFold:
    """Texts of repeated folds, and of the test rows."""
    oof = splits.OutOfFold(splits.Folds(np.array([[0], [0]]), "kfold"))
    for fold in range(2):
        oof.add(fold, ["a"], ["a"])
    return oof


F, V, T, K = FileNotFoundError, ValueError, TypeError, KeyError
M, D, N, R, L = ModuleNotFoundError, OSError, NotADirectoryError, RuntimeError, LookupError
COMES: dict[str, dict[type[BaseException], Callable[[], Any]]] = {
    # ---------------------------------------------------------------- blend
    "mean": {V: lambda: blend.mean(A), T: lambda: blend.mean(TEXTS)},
    "power_average": {V: lambda: blend.power_average(A), T: lambda: blend.power_average(TEXTS)},
    "rank_average": {V: lambda: blend.rank_average(A), T: lambda: blend.rank_average(TEXTS)},
    "majority_vote": {
        V: lambda: blend.majority_vote([[0.5], [1]]), T: lambda: blend.majority_vote([["a"], [1]])
    },
    "correlation": {V: lambda: blend.correlation(A), T: lambda: blend.correlation(TEXTS)},
    "Correlation.plot": {D: lambda: CORRELATION.plot("no/a.png"), M: lambda: CORRELATION.plot("a")},
    "find_weights": {
        T: lambda: blend.find_weights(OOF, Y, of_sizes, metric_minimization=True),
        V: lambda: blend.find_weights(OOF, Y, "auc", folds=1),
        M: lambda: blend.find_weights(OOF, Y, "f1"),
    },
    "FoundWeights.blend": {V: lambda: FOUND.blend(A), T: lambda: FOUND.blend(TEXTS)},
    "stack": {
        T: lambda: blend.stack(OOF, Y, LogisticRegression(), of_sizes),
        V: lambda: blend.stack(OOF, Y[1:], LogisticRegression()),
        M: lambda: blend.stack(OOF, Y, LogisticRegression(), "f1"),
    },
    "Stack.predict": {V: lambda: STACK.predict(OOF["a"]), T: lambda: STACK.predict(TEXTS)},
    "find_threshold": {
        T: lambda: blend.find_threshold(OOF["a"], Y, of_sizes),
        V: lambda: blend.find_threshold(OOF["a"], [2] * 36, "accuracy"),
        M: lambda: blend.find_threshold(OOF["a"], Y, "f1"),
    },
    "find_thresholds": {
        T: lambda: blend.find_thresholds(OOF["a"], Y, of_sizes),
        V: lambda: blend.find_thresholds(OOF["a"], [2] * 36, "accuracy"),
        M: lambda: blend.find_thresholds(OOF["a"], Y, "f1"),
    },
    "Thresholds.apply": {V: lambda: CUTS.apply([NAN]), T: lambda: CUTS.apply(["a"])},
    "blend_files": {
        V: lambda: blend.blend_files([]),
        T: lambda: blend.blend_files("a.csv", "power", power=ANY),  # type: ignore[arg-type]
        F: lambda: blend.blend_files("b.csv"),
        D: lambda: blend.blend_files("a.csv", out="no/b.csv"),
        M: lambda: blend.blend_files("a.csv"),
    },
    "check_submission": {
        V: lambda: blend.check_submission("a.csv", "a.csv"),
        T: lambda: blend.check_submission("a.csv", "a.csv", ranges=ANY),  # type: ignore[arg-type]
        F: lambda: blend.check_submission("b.csv", "a.csv"),
        M: lambda: blend.check_submission("a.csv", "a.csv"),
    },
    # ---------------------------------------------------------------- splits
    "make_folds": {
        D: lambda: splits.make_folds(9, path="no/a.csv"),
        T: lambda: splits.make_folds(9, kind="time", gap=timedelta(1)),
        V: lambda: splits.make_folds(9, kind="time", gap=9),
        M: lambda: splits.make_folds(9),
    },
    "check_folds": {
        T: lambda: splits.check_folds(Y),  # type: ignore[arg-type]
        V: lambda: splits.check_folds(FOLDS, groups=Y),
        M: lambda: splits.check_folds(FOLDS),
    },
    "fold_indices": {
        IndexError: lambda: splits.fold_indices(FOLDS, 2),
        T: lambda: splits.fold_indices(FOLDS, ANY),  # type: ignore[arg-type]
    },
    "Folds.split": {V: lambda: FOLDS.split([1]), T: lambda: FOLDS.split(ANY)},
    "look": {
        T: lambda: splits.look(None, None),
        V: lambda: splits.look(TABLE, TABLE, groups="y"),
        M: lambda: splits.look(TABLE, TABLE),
    },
    "Look.plot": {D: lambda: LOOK.plot("no/a.png"), M: lambda: LOOK.plot("a.png")},
    "OutOfFold": {T: lambda: splits.OutOfFold(ANY)},  # type: ignore[arg-type]
    "OutOfFold.add": {
        T: lambda: HALF.add(ANY, [1]),  # type: ignore[arg-type]
        V: lambda: HALF.add(1, [1]),
        IndexError: lambda: HALF.add(2, [1]),
    },
    "OutOfFold.predictions": {
        V: lambda: splits.OutOfFold(FOLDS).predictions, T: lambda: words().predictions
    },
    "OutOfFold.test": {V: lambda: HALF.test, T: lambda: words().test},
    "OutOfFold.score": {
        T: lambda: HALF.score(Y, of_sizes), V: lambda: HALF.score([1], "auc"),
        M: lambda: HALF.score(Y, "auc"),
    },
    # ---------------------------------------------------------------- scoreboard
    "record_scores": {
        T: lambda: scoreboard.record_scores(".", metric_minimization=ANY),  # type: ignore[arg-type]
        V: lambda: scoreboard.record_scores(".", test=NAN),
        N: lambda: scoreboard.record_scores("no", test=0.5),
        D: lambda: scoreboard.record_scores(".", file="no"),
        R: replaced,
    },
    "compare": {
        V: lambda: scoreboard.compare(RUN), L: lambda: scoreboard.compare(RUN, "no"),
        M: lambda: scoreboard.compare(*FOLDED),
        T: lambda: scoreboard.compare(*FOLDED, among="runs"),
    },
    "check_gaps": {
        L: lambda: scoreboard.check_gaps(["no"]), M: lambda: scoreboard.check_gaps(FIVE),
        T: lambda: scoreboard.check_gaps("no"),
    },
    "check_gap": {L: lambda: scoreboard.check_gap("no")},
    "paired_bootstrap": {
        T: lambda: scoreboard.paired_bootstrap(Y, Y, Y, of_sizes),
        V: lambda: scoreboard.paired_bootstrap(Y, Y, [1], "accuracy"),
        M: lambda: scoreboard.paired_bootstrap(Y, Y, Y, "f1"),
    },
    "Runs": {
        T: lambda: scoreboard.Runs([], True),  # type: ignore[arg-type]
        L: lambda: scoreboard.Runs(["no"]),
    },
    "Runs.table": {M: lambda: RUNS.table()},
    "Runs.metrics": {M: lambda: RUNS.metrics()},
    "Runs.column": {K: lambda: RUNS.column("no")},
    "Runs.where": {V: lambda: RUNS.where("run"), K: lambda: RUNS.where("no=1")},
    "Runs.sorted": {K: lambda: RUNS.sorted("no")},
    "Runs.best_first": {V: lambda: RUNS.best_first("epochs"), K: lambda: RUNS.best_first("no")},
    "Runs.groups": {K: lambda: RUNS.groups("no")},
    "read_runs": {
        N: lambda: scoreboard.read_runs("no"),
        T: lambda: scoreboard.read_runs(".", metric_minimization={"a": ANY}),  # type: ignore[dict-item]
    },
    "best_first": {
        L: lambda: scoreboard.best_first(["no"]), T: lambda: scoreboard.best_first("no"),
    },
    "find_run": {
        L: lambda: scoreboard.find_run("no"),
        T: lambda: scoreboard.find_run(7),  # type: ignore[arg-type]
    },
    "Metric.best": {T: lambda: scoreboard.Metric(0.5, 1, 1, None, None).best(ANY)},  # type: ignore[arg-type]
    # ---------------------------------------------------------------- loggers, report
    "BackgroundLogger.log_metrics": {
        T: lambda: lines().log_metrics({"a": "x"}, 1),  # type: ignore[dict-item]
        V: lambda: lines().log_metrics({"a/b": 1.0, "a": {"b": 1.0}}, 1),
    },
    "BackgroundLogger.log_params": {V: lambda: lines().log_params({"a/b": 1, "a": {"b": 1}})},
    "BackgroundLogger.log_figure": {T: lambda: lines().log_figure("a", ANY, 1)},
    "BackgroundLogger.log_image": {V: lambda: lines().log_image("a", [0.5], 1)},
    "BackgroundLogger.log_histogram": {
        T: lambda: lines().log_histogram("a", ["x"], 1),
        V: lambda: lines().log_histogram("a", [1], 1, bins=0),
    },
    "BackgroundLogger.load_state_dict": {
        R: lambda: begun().load_state_dict({}), K: lambda: lines().load_state_dict({}),
        T: lambda: lines().load_state_dict(ANY),  # type: ignore[arg-type]
    },
    "Loggers": {T: lambda: Loggers([lines()])},  # type: ignore[arg-type]
    "Loggers.log_metrics": {
        T: lambda: Loggers().log_metrics({"a": "x"}, 1),  # type: ignore[dict-item]
        V: lambda: Loggers().log_metrics({"a/b": 1.0, "a": {"b": 1.0}}, 1),
    },
    "Loggers.log_params": {V: lambda: Loggers().log_params({"a/b": 1, "a": {"b": 1}})},
    "MLflowLogger": {M: lambda: loggers.MLflowLogger("a")},
    "TensorBoardLogger": {M: lambda: loggers.TensorBoardLogger("a")},
    "TensorBoardXLogger.add_metric": {
        T: lambda: loggers.TensorBoardXLogger("a").add_metric("a", "x", 1),
    },
    "TensorBoardXLogger": {M: lambda: loggers.TensorBoardXLogger("a")},
    "TrackioLogger": {M: lambda: loggers.TrackioLogger("a").log_metrics({}, 1)},
    "WandbLogger": {M: lambda: loggers.WandbLogger("a")},
    "read_together": {
        T: lambda: loggers.read_together({"a": "x"}),  # type: ignore[dict-item]
        V: lambda: loggers.read_together({"a/b": 1.0, "a": {"b": 1.0}}),
    },
    "write_report": {
        L: lambda: report.write_report("empty"), N: lambda: report.write_report("no"),
        D: lambda: within(lambda run: report.write_report(run, run)),
    },
    # ---------------------------------------------------------------- batteries itself
    "set_backends": {
        V: lambda: set_backends(sharing_strategy="x"),  # type: ignore[arg-type]
        T: lambda: set_backends(matmul_precision="high", cudnn_benchmark=1),  # type: ignore[arg-type]
    },
    "to_device": {V: lambda: to_device(1, "no"), T: lambda: to_device(Odd("a", 1), "cpu")},
    "AverageMeter.update": {
        T: lambda: AverageMeter().update([1]),  # type: ignore[arg-type]
        V: lambda: AverageMeter().update(torch.ones(2)),
    },
    "EarlyStopping": {
        T: lambda: EarlyStopping(), V: lambda: EarlyStopping(-1, metric_minimization=True)
    },
    "AverageMeter.load_state_dict": {
        K: lambda: AverageMeter().load_state_dict({}),
        T: lambda: AverageMeter().load_state_dict(ANY),  # type: ignore[arg-type]
    },
    "EarlyStopping.load_state_dict": {
        K: lambda: EarlyStopping(metric_minimization=True).load_state_dict({}),
        T: lambda: EarlyStopping(metric_minimization=True).load_state_dict(ANY),  # type: ignore[arg-type]
    },
    "EarlyStopping.step": {T: lambda: EarlyStopping(metric_minimization=True).step(None)},
    "get_logger": {
        N: lambda: get_logger("a", "a.csv/log.txt"),
        IsADirectoryError: lambda: get_logger("a", "."),
        V: lambda: get_logger("a", log_level="loud"),
    },
    "PreemptionGuard": {
        R: guard_in_a_thread, V: lambda: PreemptionGuard(time_limit="soon"),
        T: lambda: PreemptionGuard(ANY),  # type: ignore[arg-type]
    },
    "run_directory": {
        N: lambda: run_directory("a.csv"), V: lambda: run_directory("odd", resume=True)
    },
    "start_run": {
        N: lambda: start_run("a.csv"), R: lambda: within(lambda _: start_run("runs")),
        V: lambda: start_run("odd"),
    },
    "Run.close": {
        D: lambda: within(lambda run: Path(run, "run.json").unlink()),
        V: lambda: within(lambda run: run.close("done")),  # type: ignore[arg-type]
    },
    "seed_all": {T: lambda: seed_all("1"), V: lambda: seed_all(-1)},  # type: ignore[arg-type]
    "seed_worker": {R: lambda: seed_worker(0)},
    "set_rng_state": {
        K: lambda: set_rng_state({}), T: lambda: set_rng_state(ANY),  # type: ignore[arg-type]

        V: lambda: set_rng_state({**rng_state(), "cuda": [0] * 99})
    },
}  # fmt: skip
RANKS = {"all_reduce_meters", "check_in_sync", "distribute"}  # tests of these rooms have ranks


class Odd(tuple[Any, ...]):
    def __new__(cls, first: Any, second: Any) -> Odd:
        return super().__new__(cls, (first, second))


def documented() -> dict[str, set[str]]:
    """The functions, classes and methods of the rooms, with the errors that they document."""
    own = {name: getattr(batteries, name) for name in batteries.__all__}
    names = [value for value in own.values() if getattr(value, "__module__", "") == "batteries"]
    rooms = (blend, loggers, report, scoreboard, splits)
    names += [getattr(room, name) for room in rooms for name in room.__all__]
    found: dict[str, set[str]] = {}
    for part in [*names, *(method for each in names for method in methods(each))]:
        told = re.search(r"\nRaises:\n((?:    .*\n?|\n)+)", inspect.getdoc(part) or "")
        for errors in re.findall(r"^    (\w[\w, ]*):", told[1] if told else "", re.MULTILINE):
            found.setdefault(part.__qualname__, set()).update(errors.split(", "))
    return found


def methods(kind: Any) -> Iterator[Any]:
    own = [each for each in getattr(kind, "__mro__", ()) if each.__module__[:9] == "batteries"]
    for name, part in (pair for each in own for pair in vars(each).items()):
        function = part.fget if isinstance(part, property) else part
        if inspect.isfunction(function) and not name.startswith("_"):
            yield function


def test_no_error_is_left_out() -> None:
    """The errors of this table are those that the docstrings name."""
    table = {name: {error.__name__ for error in errors} for name, errors in COMES.items()}
    told = {name: errors for name, errors in documented().items() if name not in RANKS}
    assert table == told


@pytest.mark.parametrize("name", COMES)
def test_errors_come(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each error that a docstring names comes, with this type."""
    Path("a.csv").write_text("id,p\n1,0.5\n2,0.25\n")
    Path("empty").mkdir()
    Path("odd/001").mkdir(parents=True)
    Path("odd/001/run.json").write_text("{")
    for error, call in COMES[name].items():
        with monkeypatch.context() as patch:
            if error is M:
                patch.setattr("batteries._optional.importlib", SimpleNamespace(import_module=gone))
            with pytest.raises(error):
                call()


def gone(module: str) -> None:
    raise ModuleNotFoundError(name=module)
