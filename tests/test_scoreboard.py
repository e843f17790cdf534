from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sweeps import sweep
from torch import nn

from batteries import CheckpointManager, make_checkpoint, start_run
from batteries.scoreboard import (
    RunInfo,
    best_first,
    check_gap,
    check_gaps,
    compare,
    find_run,
    paired_bootstrap,
    read_run,
    read_runs,
    record_scores,
)


def make_run(
    scores: list[float],
    args: dict[str, Any] | None = None,
    metric: str = "accuracy",
    stage: str = "",
    minimization: bool = False,
) -> Path:
    """A real run with a score an epoch; returns its directory."""
    with start_run("runs", args, new=True) as run:
        add_stage(run.path, scores, metric, stage, minimization)
    return run.path


def add_stage(
    run: Path, scores: list[float], metric: str, stage: str = "", minimization: bool = False
) -> None:
    logdir = run / "checkpoints" / stage
    manager = CheckpointManager(logdir, metric, minimization, save_n_best=1)
    for epoch, score in enumerate(scores, start=1):
        manager.process(score, epoch, make_checkpoint("train", epoch, nn.Linear(1, 1)))


def info(validation: float, test: float, folds: list[float] | None = None) -> RunInfo:
    scores: dict[str, Any] = {"validation": validation, "test": test, "folds": folds or []}
    return RunInfo("run", Path("run"), scores=scores)


# ---------------------------------------------------------------- runs


def test_what_a_run_says() -> None:
    """A run's row has its best epoch, its scores, the gaps and its state."""
    path = make_run([0.8, 0.93, 0.9], {"lr": 0.1})
    record_scores(path, test=0.91, leaderboard=0.907)
    record_scores(path, leaderboard=0.9, name="private")
    [run] = read_runs("runs")
    row = run.row()
    assert (row["run"], row["state"], row["epochs"]) == ("001", "finished", 3)
    assert [stage.epochs for stage in run.stages] == [3]
    assert (row["validation"], row["epoch"], row["metric"]) == (0.93, 2, "accuracy")
    assert (row["test"], row["leaderboard.public"], row["leaderboard.private"]) == (
        0.91,
        0.907,
        0.9,
    )
    assert row["test - validation"] == pytest.approx(-0.02)
    assert row["public - validation"] == pytest.approx(-0.023)
    assert row["seconds"] >= 0
    assert run.session["args"] == {"lr": 0.1}


def test_stages() -> None:
    """Of several stages the best one is told, by the metric of the last."""
    path = make_run([0.9], stage="warmup")
    add_stage(path, [0.8, 0.85], "accuracy", "main")
    [run] = read_runs("runs")
    assert (run.row()["stage"], run.row()["epochs"], run.validation) == ("warmup", 3, 0.9)
    add_stage(path, [0.2, 0.1], "loss", "fine", minimization=True)
    [run] = read_runs("runs")
    assert (run.row()["stage"], run.row()["metric"], run.validation) == ("fine", "loss", 0.1)


def test_scores_that_are_not_finite() -> None:
    """NaN is never best, and a run of NaN has no score."""
    make_run([math.nan, 0.5, math.nan])
    make_run([math.nan])
    assert [run.validation for run in read_runs("runs")] == [0.5, None]


def test_checkpoints_without_a_record() -> None:
    """The directory of a CheckpointManager is a run too."""
    add_stage(Path("old/a"), [0.5], "accuracy")
    CheckpointManager("old/b", "loss", True).process(
        0.5, 1, make_checkpoint("a", 1, nn.Linear(1, 1))
    )
    assert [(run.name, run.state, run.epochs) for run in read_runs("old")] == [
        ("a", "unknown", 1),
        ("b", "unknown", 1),
    ]


FOREIGN = {
    "run.json": [
        b"[" * 200_000,
        b'{"sessions": 3}',
        b'{"sessions": [1, {}]}',
        b'{"sessions": [{"git": "x"}]}',
    ],
    "scores.json": [
        b'{"test": NaN}',
        b'{"test": 1%s}' % (b"0" * 400),
        b'{"test": "x"}',
        b'{"leaderboard": 3}',
        b'{"folds": [[]]}',
        b'{"folds": 3}',
    ],
    "checkpoints/metrics.json": [b'{"values": []}', b'{"metric_name": "loss", "values": 3}'],
}
HALF = [b"", b"{", b"[1, 2]", b"3", b"\xff\xfe"]


@pytest.mark.parametrize(
    ("file", "content"), [(file, text) for file, own in FOREIGN.items() for text in [*HALF, *own]]
)
def test_damaged_files(file: str, content: bytes) -> None:
    """A half-written or foreign file is named; the rest of the run and the others are shown."""
    damaged, good = make_run([0.9]), make_run([0.8])
    for path in (damaged, good):
        record_scores(path, test=0.5)
    (damaged / file).write_bytes(content)
    first, second = read_runs("runs")
    assert second.problems == []
    assert second.row()["test"] == 0.5
    [problem] = first.problems
    assert str(damaged / file) in problem
    assert first.row()["run"] == "001"
    assert first.row()["test"] == (None if file == "scores.json" else 0.5)
    whole = file != "scores.json"  # both scores are there, that of the epochs in run.json too
    assert [check.runs for check in check_gaps([first, second])] == [1 + whole]
    assert len(check_gap(first)) == whole


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root, to be somebody else for once")
def test_directories_of_others() -> None:
    """A directory that may not be read is told as a run with a problem, and stops no other."""
    make_run([0.9])
    Path("runs/private").mkdir(mode=0o700)
    Path().chmod(0o755)
    os.seteuid(65534)
    try:
        first, second = read_runs("runs")
    finally:
        os.seteuid(0)
    assert first.row()["validation"] == 0.9
    assert (second.name, second.state) == ("private", "unreadable")
    assert "Permission denied: 'runs/private/run.json'" in second.problems[0]


def test_foreign_rows() -> None:
    """Scores and epochs that no float can be are left out, and the others count."""
    path = make_run([0.9, 0.8])
    memory = json.loads((path / "checkpoints/metrics.json").read_text())
    memory["values"] += [{"epoch": 3, "accuracy": 10**400}, {"epoch": "one"}, {"epoch": [4]}]
    (path / "checkpoints/metrics.json").write_text(json.dumps(memory))
    [found] = read_runs("runs")
    assert (found.row()["validation"], found.row()["epoch"], found.epochs) == (0.9, 1, 3)
    (path / "metrics.json").symlink_to("nowhere")
    [found] = read_runs("runs")
    assert "[Errno 2] No such file or directory: 'runs/001/metrics.json'" in found.problems
    assert found.row()["validation"] == 0.9


def test_rows_by_hand() -> None:
    """Rows of a metrics.json that are left out are a problem of the run, and it stays unknown."""
    Path("runs").mkdir()
    rows = [{"epoch": 1, "auc": 0.8}, {"epoch": 2.0, "auc": 0.9}]
    told = {"metric_name": "auc", "metric_minimization": False, "values": rows}
    Path("runs/metrics.json").write_text(json.dumps(told))
    found = read_run("runs")
    assert (found.validation, found.state) == (0.8, "unknown")
    assert found.problems == [
        "runs/metrics.json: 1 rows have values that no CheckpointManager writes, which are left out"
    ]


def test_a_recorded_metric_has_its_own_direction() -> None:
    """A recorded AUC is not better when it is lower because the checkpoints' loss is."""
    path = make_run([0.4], metric="loss", minimization=True)
    record_scores(path, leaderboard=0.9, metric="auc", metric_minimization=False)
    assert (read_run(path).metric, read_run(path).minimization) == ("loss", True)
    (path / "scores.json").unlink()
    record_scores(path, validation=0.9, metric="auc")
    assert (read_run(path).metric, read_run(path).minimization) == ("auc", None)
    record_scores(path, metric_minimization=False)
    assert read_run(path).minimization is False
    record_scores(path, metric="loss")
    assert read_run(path).minimization is False


def test_scores_of_different_metrics() -> None:
    """An AUC minus an error is no difference, whatever the noise of their folds."""
    for metric, folds in (
        ("auc", [0.7, 0.8, 0.75]),
        ("rmse", [2.1, 2.3, 2.2]),
        ("auc", [0.8, 0.9, 0.85]),
    ):
        record_scores(make_run([0.9], {"folds": folds}), folds=folds, metric=metric)
    auc, error, other = read_runs("runs")
    assert [each.pair for each in compare(auc, error, other).differences] == [(0, 2)]
    assert "; and the same metric" in compare(auc, error).verdicts()[0]


def test_folds_by_name() -> None:
    """Folds with names are compared with those of the same name, in whatever order they came."""
    names = [f"fold_{number}" for number in range(11)]
    scores = {name: 0.8 + 0.01 * number for number, name in enumerate(names)}
    better = {name: scores[name] + 0.001 * number for number, name in enumerate(names)}
    for lr, folds in ((0.1, scores), (0.2, dict(reversed(better.items())))):
        record_scores(make_run([0.9], {"lr": lr}), folds=folds)
    found = compare(*read_runs("runs")).difference
    assert read_run("runs/001").scores["folds"] == list(scores.values())
    assert found is not None
    assert found.beyond_noise


def test_any_place_to_start_from() -> None:
    """The directory of one run, or of its checkpoints, has that run in it."""
    path = make_run([0.9])
    assert [(run.name, run.validation) for run in read_runs(path)] == [("001", 0.9)]
    (path / "run.json").unlink()
    assert [run.validation for run in read_runs(path / "checkpoints")] == [0.9]


def test_nearest_names() -> None:
    """A run that is not there is answered with the nearest names."""
    make_run([0.5])
    assert find_run("runs/001").epochs == 1
    assert find_run("001", "runs").epochs == 1
    record_scores(make_run([]), test=0.5)
    Path("runs/002/run.json").write_text("{")
    assert find_run("002", "runs").scores == {"test": 0.5}
    with pytest.raises(LookupError, match="there is no run runs/01; the nearest: runs/001"):
        find_run("runs/01")
    with pytest.raises(LookupError, match=r"there is no run 1, and no runs are in .*run\.json"):
        find_run("1", "runs/002/run.json")
    with pytest.raises(NotADirectoryError, match="there is no directory elsewhere"):
        read_runs("elsewhere")


def test_scores_are_numbers() -> None:
    """A score that is not a finite number is named, and nothing is written."""
    path = make_run([0.5])
    for value in (math.nan, math.inf, "high"):
        with pytest.raises(ValueError, match=r"test is .*; expected a finite number"):
            record_scores(path, validation=0.5, test=value)  # type: ignore[arg-type]
    assert not (path / "scores.json").exists()
    with pytest.raises(NotADirectoryError, match="there is no run runs/009"):
        record_scores("runs/009", test=0.5)


def test_the_ledger() -> None:
    """Every submission stays; a file that was submitted before gets its other scores there."""
    path = make_run([0.5])
    Path("a.csv").write_text("id,p")
    Path("b.csv").write_text("id,q")
    record_scores(path, leaderboard=0.8, file="a.csv", message="first")
    record_scores(path, leaderboard=0.7, file="b.csv")
    record_scores(path, leaderboard=0.75, name="private", file="a.csv")
    scores = record_scores(path, leaderboard=0.8, file="a.csv", message="again")
    told = [(Path(each["file"]).name, each["scores"]) for each in scores["submissions"]]
    assert told == [
        ("a.csv", {"public": 0.8, "private": 0.75}),
        ("b.csv", {"public": 0.7}),
        ("a.csv", {"public": 0.8}),
    ]
    first, _, last = scores["submissions"]
    assert (first["message"], last["message"]) == ("first", "again")
    assert first["sha256"] == hashlib.sha256(b"id,p").hexdigest() == last["sha256"]
    assert scores["leaderboard"] == {"public": 0.8, "private": 0.75}
    with pytest.raises(FileNotFoundError, match=r"c\.csv"):
        record_scores(path, leaderboard=0.9, file="c.csv")


def test_runs_without_a_manager_are_ranked() -> None:
    """The metric and its direction that a run was told count for ranks and gaps."""
    for value in np.linspace(0.5, 0.9, 6):
        with start_run("runs", new=True) as run:
            record_scores(
                run, validation=value, test=value + 1, metric="rmse", metric_minimization=True
            )
    runs = read_runs("runs")
    assert next(run.name for run in best_first(runs)) == "001"
    assert [str(check) for check in check_gaps(runs)] == [
        "6 runs by rmse: test moves with validation"
    ]


# ---------------------------------------------------------------- comparisons


def test_what_differs() -> None:
    """Arguments, versions and scores that differ are told, and only those."""
    first = find_run(make_run([0.5], {"lr": 0.1, "seed": 1}))
    path = make_run([0.6], {"lr": 0.2, "seed": 1, "new": True})
    record = json.loads((path / "run.json").read_text())
    record["sessions"][-1]["packages"]["torch"] = "3.0"
    (path / "run.json").write_text(json.dumps(record))
    found = compare(first, find_run(path))
    assert found.arguments == {"lr": (0.1, 0.2), "new": (None, True)}
    assert [(name, pair[1]) for name, pair in found.versions.items()] == [("torch", "3.0")]
    assert found.scores["validation"] == (0.5, 0.6)
    assert found.difference is None


def test_folds_beyond_noise() -> None:
    """Folds that are all better are beyond noise; folds that disagree are not."""
    folds = [0.90, 0.92, 0.91, 0.93, 0.89]
    first = info(0.91, 0.9, folds)
    gains = [0.02, 0.021, 0.019, 0.02, 0.02]
    better = compare(first, info(0.93, 0.9, [*map(sum, zip(folds, gains, strict=True))])).difference
    mixed = compare(first, info(0.91, 0.9, folds[::-1])).difference
    assert better is not None
    assert mixed is not None
    assert (better.beyond_noise, mixed.beyond_noise) == (True, False)
    assert better.value == pytest.approx(0.02)


def test_equal_gains() -> None:
    """Folds or seeds without any spread do not tell their noise: no difference is beyond it."""
    folds = compare(info(0.9, 0.9, [0.90, 0.92]), info(0.92, 0.9, [0.92, 0.94]))
    seeds = seeds_of([[0.5, 0.5], [0.4, 0.4]])
    both = compare(seeds[0], seeds[2], among=seeds)
    many = seeds_of([np.arange(5) / 10, np.arange(5) / 10 + 0.1])
    pairs = compare(many[0], many[5], among=many)
    for found, by in ((folds, "2 folds"), (both, "2 and 2 seeds"), (pairs, "5 pairs of seeds")):
        assert found.difference is not None
        assert (found.difference.beyond_noise, found.difference.p) == (False, 1)
        assert f"{by} have no spread, so their noise is not known" in found.verdicts()[0]


def test_folds_that_differ_by_chance() -> None:
    """Of pairs that differ by the chance of five folds alone, one in twenty is called different."""
    folds = np.random.default_rng(0).normal(0.9, 0.01, (1000, 2, 5))
    pairs = [[info(0.9, 0.9, list(each)) for each in pair] for pair in folds]
    found = [compare(first, second).difference for first, second in pairs]
    share = np.mean([difference is not None and difference.beyond_noise for difference in found])
    assert 0.03 < share < 0.06


def test_bootstrap() -> None:
    """The interval is scipy's paired bootstrap, up to what resampling leaves open."""
    generator = np.random.default_rng(0)
    target = generator.integers(0, 2, 400)
    first = np.where(generator.random(400) < 0.80, target, 1 - target)
    second = np.where(generator.random(400) < 0.85, target, 1 - target)

    def accuracy(y: Any, p: Any) -> float:
        return float((y == p).mean())

    found = paired_bootstrap(target, first, second, accuracy)
    assert paired_bootstrap(target, first, second, "accuracy") == found
    gains = (second == target).astype(float) - (first == target)
    np.random.seed(1)  # bootstrap's own argument has another name before scipy 1.15
    oracle = stats.bootstrap((gains,), np.mean, method="percentile").confidence_interval
    assert found.value == pytest.approx(gains.mean())
    assert found.interval == pytest.approx((oracle.low, oracle.high), abs=0.005)
    with pytest.raises(ValueError, match=r"\[399, 400\] rows"):
        paired_bootstrap(target[:-1], first, second, accuracy)


def test_gaps() -> None:
    """Test that moves with validation is told so, with scipy's rank correlation; noise is not."""
    values = np.linspace(0.8, 0.9, 12)
    [moves] = check_gaps([info(value, value**2) for value in values])
    assert moves.correlation == pytest.approx(1.0)
    assert moves.verdict == "test moves with validation"
    noise = np.random.default_rng(3).permutation(values)
    [found] = check_gaps([info(*pair) for pair in zip(values, noise, strict=True)])
    assert found.correlation == pytest.approx(stats.spearmanr(values, noise).statistic)
    assert found.interval is not None
    assert found.correlation is not None
    assert found.interval[0] < found.correlation < found.interval[1]
    assert "12 runs are too few to show that test follows validation" in found.verdict
    [few] = check_gaps([info(0.5, 0.4)] * 3)
    assert few.correlation is None
    assert few.verdict.startswith("too few to say whether test moves with validation")


def test_the_gap_of_a_run() -> None:
    """The gap of a run is that of its row, also where the score is of stages or was told."""
    path = make_run([0.9], stage="fold_0")
    add_stage(path, [0.8], "accuracy", "fold_1")
    record_scores(path, test=0.7)
    assert check_gap(path) == [
        "test - validation is -0.1500, outside the spread of 2 folds (0.8000 to 0.9000)"
    ]
    [found] = check_gap(info(0.95, 0.9, [0.8, 0.9]))
    assert found.startswith("test - validation is -0.0500, inside the spread of 2 folds")


def test_a_leaderboard_named_test() -> None:
    """Its gap does not take the place of the gap of the test score."""
    path = make_run([0.9])
    record_scores(path, test=0.8, leaderboard=0.5, name="test")
    row = read_run(path).row()
    names = ("test", "leaderboard.test", "test - validation", "leaderboard test - validation")
    assert [round(row[name], 9) for name in names] == [0.8, 0.5, -0.1, -0.4]
    assert check_gap(path) == [
        "test - validation is -0.1000",
        "leaderboard test - validation is -0.4000",
    ]


def test_one_equal_score() -> None:
    """Scores that are all the same are no small number of runs."""
    [found] = check_gaps([info(value, 0.5) for value in np.linspace(0, 1, 300)])
    assert str(found) == "300 runs: all have the same test score, so no correlation can be seen"


def test_seeds_by_welch() -> None:
    """The interval of two configurations is scipy's, of all runs of both."""
    paths = [make_run([0.9 + s / 100 + lr], {"lr": lr, "opt": {"seed": s}})
             for lr in (0.01, 0.05) for s in (0, 1, 3)]  # fmt: skip
    found = compare(paths[0], paths[5], among=read_runs("runs")).difference
    assert found is not None
    expected = stats.ttest_ind([0.95, 0.96, 0.98], [0.91, 0.92, 0.94], equal_var=False)
    assert found.interval == pytest.approx(expected.confidence_interval())
    assert (found.by, found.beyond_noise) == ("3 and 3 seeds", True)
    assert compare(paths[0], paths[1], among=read_runs("runs")).only_seeds


def seeds_of(scores: Any) -> list[RunInfo]:
    """A run for each score: of each row one configuration, of each column a seed."""
    return [
        RunInfo(
            f"{kind}-{seed}", Path(f"{kind}-{seed}"),
            {"sessions": [{"args": {"lr": kind, "seed": seed}}]},
            scores={"validation": float(score), "metric": "loss", "minimization": True},
        )
        for kind, row in enumerate(scores)
        for seed, score in enumerate(row)
    ]  # fmt: skip


def test_repeats_of_a_seed() -> None:
    """Runs with one seed are one run of it; those that have not finished count where named."""
    runs = seeds_of([[0.50, 0.50, 0.52], [0.40, 0.41, 0.43]])
    for repeat, seed in ((runs[1], runs[0]), (runs[4], runs[3])):
        repeat.record["sessions"][0]["args"] = seed.session["args"]
    found = compare(runs[0], runs[3], among=runs).difference
    expected = stats.ttest_ind([0.405, 0.43], [0.50, 0.52], equal_var=False)
    assert found is not None
    assert found.by == "2 and 2 seeds"
    assert found.interval == pytest.approx(expected.confidence_interval())
    one_seed_each = [runs[1], runs[4]]
    assert compare(runs[0], runs[3], among=one_seed_each).difference is None
    failed = dataclasses.replace(runs[5], state="failed")
    without = compare(runs[0], runs[3], among=[*runs[:5], failed])
    assert without.difference is None
    assert "1 unfinished runs of these configurations are left out: name" in without.verdicts()[-1]
    named = compare(runs[0], runs[3], failed, among=runs)
    assert (named.left_out, named.differences[0].by) == (0, "2 and 2 seeds")


@pytest.mark.parametrize("seeds", [3, sweep(6)])
def test_seeds_that_differ_by_chance(seeds: int) -> None:
    """Of 1,000 pairs of configurations without a difference, 6 % at most are called different."""
    noise = np.random.default_rng(seeds).normal(0.5, 0.05, (1000, 2, seeds))
    called = 0
    for scores in noise:
        runs = seeds_of(scores)
        difference = compare(runs[0], runs[-1], among=runs).difference
        assert difference is not None
        called += difference.beyond_noise
    assert 15 < called <= 60


def test_many_comparisons_by_chance() -> None:
    """Of four configurations without a difference, some pair is called different in 6 % at most."""
    noise, called = np.random.default_rng(0).normal(0.5, 0.05, (100, 4, 5)), 0
    for scores in noise:
        runs = seeds_of(scores)
        found = compare(*runs[::5], among=runs).differences
        assert [each.of for each in found] == [6] * 6
        called += any(each.beyond_noise for each in found)
    assert called <= 6


def test_pairs_of_seeds() -> None:
    """Five or more runs with the same seeds are paired, as scipy's paired test has them."""
    generator = np.random.default_rng(0)
    by_seed = generator.normal(0.5, 0.1, 6)
    scores = [by_seed, by_seed - 0.02 + generator.normal(0, 0.005, 6)]
    runs = seeds_of(scores)
    found = compare(runs[0], runs[6], among=runs)
    [difference] = found.differences
    expected = stats.ttest_rel(scores[1], scores[0])
    assert difference.interval == pytest.approx(expected.confidence_interval())
    assert difference.by == "6 pairs of seeds"
    assert difference.p == pytest.approx(expected.pvalue)
    assert "1-0 is better, beyond the noise of 6 pairs of seeds" in found.verdicts()[0]


def test_holm() -> None:
    """Of several comparisons those are beyond noise that Holm's procedure rejects."""
    scores = np.random.default_rng(2).normal([[0.5], [0.53], [0.55], [0.9]], 0.03, (4, 4))
    runs = seeds_of(scores)
    found = compare(*runs[::4], among=runs).differences
    order = sorted(found, key=lambda each: each.p or 0)
    levels = [0.05 / (6 - rank) for rank in range(6)]
    rejected = [(each.p or 0) <= level for each, level in zip(order, levels, strict=True)]
    assert 0 < sum(rejected) < 6
    assert [each.beyond_noise for each in order] == sorted(rejected, reverse=True)


def test_what_would_tell() -> None:
    """Where the data cannot tell, it is said how many seeds would: with them the power is 80 %."""
    generator = np.random.default_rng(1)
    runs = seeds_of([[0.50, 0.56, 0.47], [0.53, 0.60, 0.49]])
    found = compare(runs[0], runs[3], among=runs)
    [difference] = found.differences
    assert difference.needed is not None
    said = f"the data cannot tell: not beyond the noise of 3 and 3 seeds; about {difference.needed}"
    assert said in found.verdicts()[0]
    spread = [np.std([0.50, 0.56, 0.47], ddof=1), np.std([0.53, 0.60, 0.49], ddof=1)]
    one, other = (generator.normal(0, s, (2000, difference.needed)) for s in spread)
    seen = stats.ttest_ind(one, other + difference.value, axis=1, equal_var=False).pvalue < 0.05
    assert 0.77 < seen.mean() < 0.83


def test_more_would_tell() -> None:
    """Where the data cannot tell, more seeds, folds or rows would, never those that are there."""
    seeds = seeds_of([[1.531, 1.536], [3.060, 4.528]])
    folds = [info(0.5, 0.5, folds) for folds in ([0.50, 0.50], [0.60, 0.68])]
    target = np.arange(20) % 2
    worse = np.where(np.arange(20) < 2, 1 - target, target)
    rows = paired_bootstrap(target, target, worse, lambda y, x: float(np.mean(y == x)))
    found = [*compare(seeds[0], seeds[2], among=seeds).differences, *compare(*folds).differences]
    for difference, present in zip([*found, rows], (2, 2, 20), strict=True):
        assert (difference.needed or 0) > present
    assert [difference.needed for difference in found] == [4, 4]


def test_gaps_of_other_metrics() -> None:
    """Runs with another metric are another check; of one that is minimised it is said."""
    for value in np.linspace(0.5, 0.9, 6):
        accuracy = make_run([value], metric="accuracy")
        loss = make_run([1 - value], metric="loss", minimization=True)
        for path in (accuracy, loss):
            record_scores(path, test=value)
    first, second = check_gaps(read_runs("runs"))
    assert (first.metric, first.verdict) == ("accuracy", "test moves with validation")
    assert second.correlation == pytest.approx(-1.0)
    assert "against validation: lower loss is better, so this is right if higher" in second.verdict


def test_code_of_two_runs() -> None:
    """A record's commit is a commit, or not known: it is no option of git."""
    one, other = (make_run([0.5]) for _ in range(2))
    for path, commit in ((one, "--output=stolen"), (other, "a" * 40)):
        record = json.loads((path / "run.json").read_text())
        record["sessions"][-1]["git"] = {"commit": commit, "diff": "diff-1.patch"}
        (path / "run.json").write_text(json.dumps(record))
        (path / "diff-1.patch").write_text("the same")
    assert compare(find_run(one), find_run(other)).code == "the commit of one run is not known"
    assert not Path("stolen").exists()
    same = compare(find_run(other), find_run(other)).code
    assert same == "the same commit, with the same changes"
