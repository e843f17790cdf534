"""Blends of predictions: arrays, files, and weights that are found."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Timings, peer, print_table, report, take_turns

from batteries.blend import (
    blend_files,
    correlation,
    find_weights,
    geometric,
    majority_vote,
    mean,
    power_average,
    rank_average,
)

TURNS = 5
MODELS, ROWS = 20, 1_000_000
CLIMB_ROWS, ROUNDS = 100_000, 50


def scores(models: int, rows: int) -> list[Any]:
    """Float32 scores of 100,000 values: with ties."""
    rng = np.random.default_rng(0)
    return [rng.integers(1, 100_000, rows).astype(np.float32) / 100_000 for _ in range(models)]


def means() -> None:
    stats = peer("scipy.stats")
    assert stats is not None
    arrays = scores(MODELS, ROWS)
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "mean": (lambda: np.stack(arrays).mean(0), lambda: mean(arrays)),
        "mean in float64": (
            lambda: np.stack(arrays).mean(0, dtype=np.float64), lambda: mean(arrays),
        ),
        "power_average, 2": (
            lambda: stats.pmean(np.stack(arrays), 2), lambda: power_average(arrays, power=2),
        ),
        "power_average, 3": (
            lambda: stats.pmean(np.stack(arrays), 3), lambda: power_average(arrays, power=3),
        ),
        "power_average, 0.7": (
            lambda: stats.pmean(np.stack(arrays), 0.7), lambda: power_average(arrays, power=0.7),
        ),
        "geometric": (
            lambda: np.exp(np.log(np.stack(arrays)).mean(0)), lambda: geometric(arrays),
        ),
    }  # fmt: skip
    for name, (theirs, ours) in pairs.items():
        contenders: dict[str, Callable[[], object] | None] = {
            "batteries": ours,
            "np.stack and numpy or scipy": theirs,
        }
        timings = take_turns(contenders, turns=TURNS)
        title = f"blending: {name} of {MODELS} x 1e6 float32"
        report(title, timings, reference="batteries", unit="ms")


def small_inputs() -> None:
    """Inputs for which the call itself takes most of the time. numpy checks nothing."""
    stats = peer("scipy.stats")
    assert stats is not None
    rows = [["of 1e3 rows: batteries over numpy or scipy", "2 models", "20 models"]]
    ratios: dict[str, list[str]] = {}
    for models in (2, MODELS):
        for name, (theirs, ours) in _small(stats, models).items():
            timings = take_turns({"ours": ours, "theirs": theirs}, turns=25, calls=100)
            pairs = zip(timings["ours"] or [], timings["theirs"] or [], strict=True)
            ratios.setdefault(name, []).append(f"{np.median([a / b for a, b in pairs]):.2f}")
    print("\n### blending: small inputs\n")
    print_table(rows + [[name, *found] for name, found in ratios.items()])


def _small(stats: Any, models: int) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    arrays = scores(models, 1000)
    labels = [np.random.default_rng(at).integers(0, 3, 1000) for at in range(models)]
    weights = np.arange(1, models + 1)
    return {
        "mean": (lambda: np.stack(arrays).mean(0), lambda: mean(arrays)),
        "mean, weights": (
            lambda: np.average(np.stack(arrays), 0, weights), lambda: mean(arrays, weights=weights),
        ),
        "power_average, 2": (
            lambda: np.sqrt(np.square(np.stack(arrays)).mean(0)),
            lambda: power_average(arrays, power=2),
        ),
        "power_average, 3": (
            lambda: np.power(np.power(np.stack(arrays), 3).mean(0), 1 / 3),
            lambda: power_average(arrays, power=3),
        ),
        "power_average, 0.7": (
            lambda: np.power(np.power(np.stack(arrays), 0.7).mean(0), 1 / 0.7),
            lambda: power_average(arrays, power=0.7),
        ),
        "geometric": (
            lambda: np.exp(np.log(np.stack(arrays)).mean(0)), lambda: geometric(arrays),
        ),
        "rank_average": (
            lambda: sum(stats.rankdata(array) for array in arrays) / models / 1000,
            lambda: rank_average(arrays),
        ),
        "majority_vote": (
            lambda: stats.mode(np.stack(labels), axis=0).mode, lambda: majority_vote(labels),
        ),
        "correlation": (lambda: np.corrcoef(np.stack(arrays)), lambda: correlation(arrays)),
    }  # fmt: skip


def rank_averages() -> None:
    stats, pandas, polars = peer("scipy.stats"), peer("pandas"), peer("polars")
    assert stats is not None
    arrays = scores(MODELS, ROWS)
    contenders: dict[str, Callable[[], object] | None] = {
        "batteries": lambda: rank_average(arrays),
        "scipy": lambda: sum(stats.rankdata(array) for array in arrays) / MODELS / ROWS,
        "pandas": pandas
        and (lambda: pandas.DataFrame(dict(enumerate(arrays))).rank(pct=True).mean(axis=1)),
        "polars": polars
        and (lambda: sum(polars.Series(array).rank() for array in arrays) / MODELS / ROWS),
    }
    timings = take_turns(contenders, turns=TURNS)
    report(
        f"blending: rank_average of {MODELS} x 1e6 float32",
        timings,
        reference="batteries",
        unit="ms",
    )


MEMORY = """
import sys
sys.path.insert(0, {folder!r})
from pathlib import Path
import blending
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
blending.torch.set_num_threads({threads})
{call}
"""
RANKS = """
arrays = blending.scores(10, 10_000_000)
before = peak()
blending.rank_average(arrays)
print((peak() - before) / 1e6)
"""


def in_fresh_process(call: str) -> float:
    """What a program prints."""
    script = MEMORY.format(
        folder=str(Path(__file__).parent), threads=torch.get_num_threads(), call=call
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True
    )
    return float(result.stdout)


# ---------------------------------------------------------------- files


def write_files(folder: Path) -> list[Path]:
    polars = peer("polars")
    assert polars is not None
    rng, paths = np.random.default_rng(0), []
    ids = np.char.add("row_", np.arange(ROWS).astype(str))
    for index in range(MODELS):
        order = rng.permutation(ROWS) if index % 2 else np.arange(ROWS)
        table = polars.DataFrame({"id": ids[order], "target": rng.random(ROWS)})
        paths.append(folder / f"{index}.csv")
        table.write_csv(paths[-1], float_precision=6)
    return paths


def by_pandas(paths: list[Path], out: Path) -> None:
    """What people write."""
    pandas = peer("pandas")
    assert pandas is not None
    frames = [pandas.read_csv(path).set_index("id")["target"] for path in paths]
    joined = pandas.concat(frames, axis=1)
    blend = joined.mean(axis=1).rename("target").reset_index()
    blend.to_csv(out, index=False, float_format="%.6f")


def by_polars(paths: list[Path], out: Path) -> None:
    """The same in polars: read, join, write."""
    polars = peer("polars")
    assert polars is not None
    table = polars.read_csv(paths[0])
    for index, path in enumerate(paths[1:]):
        other = polars.read_csv(path).rename({"target": f"target {index}"})
        table = table.join(other, on="id", how="left")
    blend = polars.mean_horizontal(polars.exclude("id")).alias("target")
    table.select("id", blend).write_csv(out, float_precision=6)


FILES = """
folder = Path({folder!r})
paths = sorted(folder.glob("[0-9]*.csv"))
before = peak()
{call}
print((peak() - before) / 1e6)
"""


def files() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = write_files(folder)
        calls = {
            "batteries": "blending.blend_files(paths, out=folder / 'ours.csv')",
            "polars": "blending.by_polars(paths, folder / 'polars.csv')",
            "pandas": "blending.by_pandas(paths, folder / 'theirs.csv')",
        }
        contenders: dict[str, Callable[[], object] | None] = {
            "batteries": lambda: blend_files(paths, out=folder / "ours.csv"),
            "polars": lambda: by_polars(paths, folder / "polars.csv"),
            "pandas": peer("pandas") and (lambda: by_pandas(paths, folder / "theirs.csv")),
        }
        timings = take_turns(contenders, turns=3)
        report(
            f"blending: {MODELS} CSV files of 1e6 rows", timings, reference="batteries", unit="ms"
        )
        rows = [["memory added at the peak", "MB"]]
        rows += [
            [name, f"{in_fresh_process(FILES.format(folder=temporary, call=call)):.0f}"]
            for name, call in calls.items()
        ]
        print()
        print_table(rows)


# ---------------------------------------------------------------- weights


def climb_by_hand(oof: list[Any], target: Any) -> Any:
    """The loop around roc_auc_score."""
    score = peer("sklearn.metrics").roc_auc_score  # type: ignore[union-attr]
    total, counts, best = np.zeros(len(target)), np.zeros(len(oof)), (0.0, np.zeros(len(oof)))
    for size in range(1, ROUNDS + 1):
        tried = [score(target, (total + part) / size) for part in oof]
        chosen = int(np.argmax(tried))
        total, counts[chosen] = total + oof[chosen], counts[chosen] + 1
        best = max(best, (tried[chosen], counts / size), key=lambda pair: pair[0])
    return best[1]


def climbing() -> None:
    rng = np.random.default_rng(0)
    target = (rng.random(CLIMB_ROWS) < 0.3).astype(int)
    noises = 1.2 + 0.05 * np.arange(MODELS)
    raw = [(target + rng.normal(0, noise, CLIMB_ROWS)).astype(np.float32) for noise in noises]
    oof = [1 / (1 + np.exp(-part)) for part in raw]
    timings: Timings = {"batteries": [], "the loop around roc_auc_score": []}
    found: list[Any] = [None, None]
    calls: list[Callable[[], Any]] = [
        lambda: find_weights(oof, target, "auc", rounds=ROUNDS, folds=None).weights,
        lambda: climb_by_hand(oof, target),
    ]
    for _ in range(3):
        for index, (name, call) in enumerate(zip(timings, calls, strict=True)):
            begun = time.perf_counter()
            found[index] = call()
            taken = timings[name]
            assert taken is not None
            taken.append((time.perf_counter() - begun) * 1e6)
    assert np.array_equal(*found), "the weights are not the same"
    title = f"blending: hill climbing on AUC, {MODELS} x 1e5, {ROUNDS} rounds; the same weights"
    report(title, timings, reference="batteries", unit="ms")


def main() -> None:
    threads = torch.get_num_threads()
    for number in (1, os.cpu_count() or 1):
        torch.set_num_threads(number)  # for batteries; of the others, only polars has more than one
        print(f"\nthreads: {number}")
        means()
        rank_averages()
    torch.set_num_threads(1)
    small_inputs()
    torch.set_num_threads(threads)
    memory = in_fresh_process(RANKS)
    print("\n### blending: rank_average of 10 x 1e7 float32\n")
    print_table([["memory added at the peak, MB", f"{memory:.0f}"]])
    files()
    climbing()
    torch.set_num_threads(threads)
