"""Blends of predictions: exact, in any shape, and refused where they would be nonsense."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats

from batteries.blend import (
    correlation,
    geometric,
    majority_vote,
    mean,
    power_average,
    rank_average,
)
from batteries.blend._ranks import ranks

rng = np.random.default_rng(0)
MODELS, ROWS = 5, 150_001  # more than two blocks
WEIGHTS = [0.5, 0, 2, 1, 0.25]
SAMPLES: dict[str, Any] = {
    "float64": rng.random((MODELS, ROWS)),
    "float32": rng.random((MODELS, ROWS), dtype=np.float32),
    "float16": rng.random((MODELS, 301)).astype(np.float16),
    "classes": rng.dirichlet(np.ones(4), (MODELS, 33)).astype(np.float32),
    "integers": rng.integers(0, 9, (MODELS, 40)),
    "one row": rng.random((MODELS, 1)),
    "no rows": rng.random((MODELS, 0)),
}


def tolerance(array: Any) -> float:
    return 1e-12 if array.dtype == np.float64 else 2e-7


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("name", SAMPLES)
def test_mean(name: str, weights: Any) -> None:
    """The mean is numpy's in float64, rounded once, in the predictions' dtype."""
    sample = SAMPLES[name]
    found = mean(sample, weights=weights)
    wide = sample.astype(np.float64)
    expected = np.average(wide, 0, weights) if wide.size else wide[0]
    assert found.dtype == (np.float32 if name in ("float32", "float16", "classes") else np.float64)
    np.testing.assert_allclose(found, expected, rtol=tolerance(found))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("power", [-np.inf, -3, -1, -0.3, 0, 0.5, 1, 1.7, 2, 3, 5, np.inf])
def test_power_average(power: float, weights: Any) -> None:
    """The power mean is scipy's in float64, of any power."""
    for name in ("float64", "float32", "classes"):
        sample = SAMPLES[name][..., :1000] + SAMPLES[name].dtype.type(1e-3)
        wide = sample.astype(np.float64)
        if np.isinf(power):
            counted = wide if weights is None else wide[np.array(weights) > 0]
            expected = counted.max(0) if power > 0 else counted.min(0)
        else:
            shape = (-1,) + (1,) * (wide.ndim - 1)
            broad = (
                None if weights is None else np.broadcast_to(np.reshape(weights, shape), wide.shape)
            )
            expected = stats.pmean(wide, power, axis=0, weights=broad)
        found = power_average(sample, power=power, weights=weights)
        assert found.dtype == sample.dtype
        np.testing.assert_allclose(found, expected, rtol=tolerance(found))


def test_extreme_powers_and_numbers() -> None:
    """Numbers whose powers no float64 holds have the mean that their multiples say."""
    small = np.array([[1e-30, 2e-30, 0.0, 5e-40], [3e-30, 2e-30, 1e-30, 5e-40]], dtype=np.float32)
    for power in (40.0, -40.0, 11.5):
        wide = small.astype(np.float64)[:, [0, 1, 3]]
        expected = stats.pmean(wide / wide[1], power) * wide[1]
        found = power_average(small, power)
        np.testing.assert_allclose(found[[0, 1, 3]], expected, rtol=1e-5)
    assert power_average(small, -1)[2] == 0
    assert geometric(small)[2] == 0
    tiny = np.full((13, 3), 1e-44, dtype=np.float32)
    np.testing.assert_array_equal(geometric(tiny), tiny[0])
    # products of thirty that no float64 holds, beside one that it does, and one with a zero
    rows = np.repeat([[1e-300, 1e300, 0.5, 3.0], [1e-100, 1e290, 0.5, 0.0]], 15, axis=0)
    for number in (4, 20_000):  # in one call, and block by block
        sample = np.tile(rows, number // 4)
        with np.errstate(divide="ignore"):
            expected = np.exp(np.log(sample).mean(0))
        np.testing.assert_allclose(geometric(sample), expected, rtol=1e-12)


@pytest.mark.parametrize("power", [-2.5, -1, 0, 0.5, 2, 3, 7])
def test_power_means_are_ordered(power: float) -> None:
    """A higher power has no lower mean, and all lie between the smallest and the largest."""
    sample = SAMPLES["float64"]
    lower, higher = power_average(sample, power), power_average(sample, power + 0.7)
    assert (lower <= higher * (1 + 1e-12)).all()
    assert (sample.min(0) <= lower * (1 + 1e-12)).all()
    assert (higher <= sample.max(0) * (1 + 1e-12)).all()


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_geometric(weights: Any) -> None:
    """The geometric mean is scipy's."""
    for name in ("float64", "float32", "classes"):
        sample = SAMPLES[name]
        wide = sample.astype(np.float64)
        shape = (-1,) + (1,) * (wide.ndim - 1)
        broad = None if weights is None else np.broadcast_to(np.reshape(weights, shape), wide.shape)
        expected = stats.gmean(wide, axis=0, weights=broad)
        found = geometric(sample, weights=weights)
        np.testing.assert_allclose(found, expected, rtol=tolerance(found))


# ---------------------------------------------------------------- ranks

TIED = rng.integers(-50, 50, 10_007)
RANKED: dict[str, Any] = {
    "many ties": (TIED / 7).astype(np.float32),
    "no ties": rng.permutation(9_001).astype(np.float32),
    "zeros of both signs": np.array([0.0, -0.0, 1, -1, -0.0], dtype=np.float32),
    "tiny and huge": np.array([1e-45, -1e-45, 3e38, -3e38, 0, 1e-45], dtype=np.float32),
    "all equal": np.zeros(100, dtype=np.float32),
    "half": (TIED / 7).astype(np.float16),
    "double": TIED / 7,
    "integers": TIED,
    "large integers": TIED.astype(np.int64) + 2**60,
    "bools": TIED > 0,
    "one": np.ones(1, dtype=np.float32),
    "none": np.ones(0, dtype=np.float32),
    "not contiguous": np.repeat(TIED.astype(np.float32), 2)[::2],
}


@pytest.mark.parametrize("name", RANKED)
def test_ranks_are_scipy_s(name: str) -> None:
    """Ranks are those of scipy, bit by bit, with ties and without."""
    np.testing.assert_array_equal(ranks(RANKED[name]), stats.rankdata(RANKED[name]))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["float64", "float32", "float16", "classes", "integers"])
def test_rank_average(name: str, threads: int, weights: Any) -> None:
    """The average of ranks is scipy's, over the number of rows, on any number of threads."""
    sample = SAMPLES[name][:, :20_000]
    expected = np.average(stats.rankdata(sample, axis=1), 0, weights) / sample.shape[1]
    torch.set_num_threads(threads)
    found = rank_average(sample, weights=weights)
    torch.set_num_threads(1)
    np.testing.assert_allclose(found, expected, rtol=tolerance(found))
    assert found.size == 0 or (found.min() > 0 and found.max() <= 1)


def test_monotone_transforms() -> None:
    """The rank average does not change when a model's scores are transformed monotonously."""
    sample = SAMPLES["float64"][:, :5000]
    other = [sample[0], np.exp(9 * sample[1]), sample[2] ** 3 - 7, np.log(sample[3]), 2 * sample[4]]
    np.testing.assert_array_equal(rank_average(sample), rank_average(other))


# ---------------------------------------------------------------- votes


@pytest.mark.parametrize("kind", [np.int64, np.float32, str, bool])
def test_majority_vote(kind: Any) -> None:
    """The majority's label is scipy's mode, whatever labels are made of."""
    votes = rng.integers(0, 4 if kind is not bool else 2, (7, 500))
    expected = stats.mode(votes, axis=0).mode.astype(kind)
    found = majority_vote(votes.astype(kind))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == votes.astype(kind).dtype


def test_weighted_votes() -> None:
    """Weights count as copies of a model do; of labels with as many votes it is the smallest."""
    votes, weights = rng.integers(0, 5, (4, 300)), [3, 1, 2, 1]
    copies = np.repeat(votes, weights, axis=0)
    np.testing.assert_array_equal(majority_vote(votes, weights=weights), majority_vote(copies))
    np.testing.assert_array_equal(
        majority_vote(votes, weights=np.array(weights) / 10), majority_vote(copies)
    )
    with pytest.raises(ValueError, match="model 0 has numbers that are not labels"):
        majority_vote([[0.5, 1.0]])


# ---------------------------------------------------------------- what all of them promise

BLENDS: dict[str, Callable[..., Any]] = {
    "mean": mean,
    "power": power_average,
    "geometric": geometric,
    "rank": rank_average,
}


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(blend: str, bad: float) -> None:
    """NaN and infinities are refused with model and row, in any block and any column."""
    for place in ((3, 0, 2), (2, 140_000, 0)):
        sample = np.full((MODELS, ROWS, 3), 0.5, dtype=np.float32)
        sample[place] = bad
        with pytest.raises(
            ValueError, match=f"model {place[0]} has -?(nan|inf) in row {place[1]};"
        ):
            BLENDS[blend](sample)


@pytest.mark.parametrize("power", [-np.inf, -2, -0.5, 2, np.inf])
def test_infinities_that_would_vanish(power: float) -> None:
    """An infinity is refused also where the mean of it is finite, or its weight is 0."""
    with pytest.raises(ValueError, match="model 0 has inf in row 1;"):
        power_average([[0.5, np.inf], [0.5, 0.5]], power)
    with pytest.raises(ValueError, match="model 0 has inf in row 1;"):
        power_average([[0.5, np.inf], [0.5, 0.5]], power, weights=[0, 1])
    with pytest.raises(ValueError, match="model 1 has inf in row 0;"):
        majority_vote([[1.0, 2.0], [np.inf, 2.0]])


def test_zeros_with_signs() -> None:
    """A power mean with a zero is zero for negative powers, whatever the signs of zeros."""
    for power in (-1, -0.5, -3):
        assert power_average([[-0.0, -0.0], [0.0, 0.5]], power).tolist() == [0, 0]


def test_powers_of_next_to_nothing() -> None:
    """A power near 0 gives the geometric mean."""
    numbers = [[0.2, 0.9], [0.4, 0.9]]
    for power in (1e-17, -1e-12, 1e-7):
        np.testing.assert_allclose(power_average(numbers, power), geometric(numbers), rtol=1e-6)


@pytest.mark.parametrize("blend", BLENDS)
def test_any_form_of_input(blend: str) -> None:
    """Arrays, lists, tensors and strided views give the same blend, and none of them changes."""
    sample = SAMPLES["classes"].copy()
    expected = BLENDS[blend](sample)
    forms = [
        list(sample),
        sample.tolist(),
        torch.from_numpy(sample),
        [torch.from_numpy(part).requires_grad_() for part in sample],
        np.asfortranarray(sample),
        [np.repeat(part, 2, axis=1)[:, ::2] for part in sample],
    ]
    for form in forms:
        np.testing.assert_allclose(BLENDS[blend](form), expected, rtol=1e-6)
    np.testing.assert_array_equal(sample, SAMPLES["classes"])
    half = BLENDS[blend](torch.from_numpy(sample).bfloat16())
    np.testing.assert_allclose(half, expected, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("blend", BLENDS)
def test_permuted_rows_and_copies(blend: str) -> None:
    """Permuting the rows permutes the blend; a blend of copies is the model, or its ranks."""
    sample = SAMPLES["float64"][:, :1000]
    order = rng.permutation(1000)
    np.testing.assert_array_equal(BLENDS[blend](sample[:, order]), BLENDS[blend](sample)[order])
    copies = BLENDS[blend]([sample[0]] * 6)
    expected = stats.rankdata(sample[0]) / 1000 if blend == "rank" else sample[0]
    np.testing.assert_allclose(copies, expected, rtol=1e-13)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("blend", BLENDS)
def test_equal_rows(blend: str, weights: Any) -> None:
    """Rows with equal predictions have the same blend, to the last bit, wherever they are."""
    for rows in range(1, 40):
        sample = np.repeat(SAMPLES["float64"][:, :1], rows, axis=1)
        assert len(set(BLENDS[blend](sample, weights=weights))) == 1


@pytest.mark.parametrize("blend", BLENDS)
def test_input_that_does_not_fit(blend: str) -> None:
    """Shapes and weights that do not fit are named."""
    function = BLENDS[blend]
    with pytest.raises(ValueError, match=r"model 1 have shape \(3,\), but those of model 0"):
        function([[0.1, 0.2], [0.1, 0.2, 0.3]])
    with pytest.raises(ValueError, match="no predictions to blend"):
        function([])
    with pytest.raises(ValueError, match="there are 1 weights for 2 models"):
        function([[0.1], [0.2]], weights=[1])
    for weights in ([1, -1], [0, 0], [np.nan, 1]):
        with pytest.raises(ValueError, match="expected positive numbers"):
            function([[0.1], [0.2]], weights=weights)


def test_powers_that_mean_nothing() -> None:
    """Negative predictions have no power mean, and NaN is no power."""
    with pytest.raises(ValueError, match=r"model 1 has -0.5 in row 2: a power mean needs"):
        power_average([[1, 2, 3.0], [1, 2, -0.5]], power=3)
    with pytest.raises(ValueError, match="the power is NaN"):
        power_average([[1.0]], power=np.nan)


# ---------------------------------------------------------------- correlations


def test_correlation() -> None:
    """Correlations are numpy's and scipy's, and print as a table."""
    sample = rng.standard_normal((4, 70_001)) + rng.standard_normal(70_001)
    found = correlation(sample, names=["a", "b", "c", "d"])
    np.testing.assert_allclose(found.values, np.corrcoef(sample), rtol=1e-9)
    by_rank = correlation(sample.astype(np.float32), kind="spearman")
    np.testing.assert_allclose(
        by_rank.values, stats.spearmanr(sample.astype(np.float32), axis=1).statistic, rtol=1e-9
    )
    lines = str(found).splitlines()
    assert len(lines) == 5
    assert lines[2].split()[:3] == ["b", f"{found.values[1, 0]:.4f}", "1.0000"]
    with pytest.raises(ValueError, match="there are 1 names for 4 models"):
        correlation(sample, names=["a"])
    with pytest.raises(ValueError, match="kind is 'kendall'"):
        correlation(sample, kind="kendall")  # type: ignore[arg-type]


def test_predictions_by_name() -> None:
    """A mapping or a frame has a model in each column, known by its name."""
    pd: Any = pytest.importorskip("pandas")
    columns = {"cnn": [0.25, 0.5], "tree": [0.75, 1.0]}
    for table in (columns, pl.DataFrame(columns), pd.DataFrame(columns)):
        assert mean(table).tolist() == [0.5, 0.75]
    with pytest.raises(ValueError, match="model 'tree' has nan in row 1"):
        mean({"cnn": [0.25, 0.5], "tree": [0.75, np.nan]})
    with pytest.raises(ValueError, match="the predictions are one array of 2 numbers; expected "):
        mean(np.array([0.25, 0.5]))
    assert correlation(columns).names == ["cnn", "tree"]
    by_number = {1: columns["cnn"], 2: columns["tree"]}
    assert str(correlation(columns, names=[1, 2])) == str(correlation(by_number))  # type: ignore[list-item]


@pytest.mark.parametrize("blend", BLENDS)
def test_one_by_one_and_weights_by_name(blend: str) -> None:
    """Arrays one by one are blended as their list, and weights by name as weights in order."""
    function, (first, second, *_) = BLENDS[blend], SAMPLES["classes"]
    expected = function([first, second], weights=[3, 1])
    np.testing.assert_array_equal(function(first, second, weights=[3, 1]), expected)
    named = function({"a": first, "b": second}, weights={"b": 1, "a": 3})
    np.testing.assert_array_equal(named, expected)
    with pytest.raises(ValueError, match="the weights are of a, c, but the models are a, b"):
        function({"a": first, "b": second}, weights={"a": 1, "c": 2})
    with pytest.raises(ValueError, match="pass weights and powers by name, as weights= and"):
        function([first, second], [3, 1])
