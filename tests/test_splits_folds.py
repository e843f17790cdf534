"""Folds as people hold them: loops, scikit-learn's cv, the order of time, ranges, labels."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    TimeSeriesSplit,
    cross_val_predict,
    cross_val_score,
)

from batteries.splits import Folds, check_folds, make_folds

rng = np.random.default_rng(0)
X = rng.normal(size=(120, 3))
Y = X @ [1.0, 2.0, 0.5] + rng.normal(size=120)
DAYS = np.datetime64("2024-01-01") + np.arange(120) // 2  # two rows a day


def test_loops() -> None:
    """Folds are looped over, indexed and counted as a list of pairs of rows is."""
    folds = make_folds(10, 5)
    pairs = list(folds)
    assert len(folds) == len(pairs) == folds.get_n_splits() == 5
    for pair, own, given in zip(pairs, range(5), folds.split(X[:10]), strict=True):
        for rows in zip(pair, folds[own], folds[own - 5], given, strict=True):
            assert all(np.array_equal(rows[0], other) for other in rows)
    with pytest.raises(IndexError, match="there is no fold 5: they are 0 to 4"):
        folds[5]
    with pytest.raises(ValueError, match="X has 9 rows, but the folds have 10"):
        folds.split(X[:9])


def test_the_cv_of_scikit_learn() -> None:
    """As `cv=`, folds give the scores and predictions of the splitter that made them."""
    folds, model = make_folds(Y > 0, 4, "stratified", seed=3), LinearRegression()
    theirs = StratifiedKFold(4, shuffle=True, random_state=3)
    for function in (cross_val_score, cross_val_predict):
        expected = function(model, X, Y, cv=list(theirs.split(X, Y > 0)))
        np.testing.assert_array_equal(function(model, X, Y, cv=folds), expected)
    search = GridSearchCV(model, {"fit_intercept": [True, False]}, cv=folds).fit(X, Y)
    assert search.n_splits_ == 4


def test_the_column_of_a_frame() -> None:
    """The column of a frame that folds make says the fold of each row."""
    pd: Any = pytest.importorskip("pandas")
    folds = make_folds(6, 3)
    for table in (
        pl.DataFrame({"fold": folds.assignment}),
        pd.DataFrame({"fold": folds.assignment}),
    ):
        for fold, (_, valid) in enumerate(folds):
            assert np.array_equal(np.flatnonzero(table["fold"] == fold), valid)
    assert np.array_equal(np.asarray(folds), folds.assignment)


# ---------------------------------------------------------------- the order of time


@pytest.mark.parametrize(("gap", "window"), [(0, None), (3, None), (0, 10), (2, 7)])
def test_gaps_and_windows_in_rows(gap: int, window: int | None) -> None:
    """Gaps and windows of rows are those of scikit-learn's TimeSeriesSplit."""
    expected = TimeSeriesSplit(4, gap=gap, max_train_size=window).split(np.zeros(43))
    for ours, theirs in zip(
        make_folds(43, 4, "time", gap=gap, window=window), expected, strict=True
    ):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


ZONES = (datetime.timezone.utc, None)
ZONED = [datetime.datetime(2024, 1, 1 + n % 28, tzinfo=ZONES[n % 2]) for n in range(120)]
HOURS: list[Any] = [
    DAYS,
    (DAYS - DAYS[0]).astype(float),
    [datetime.date.fromisoformat(str(day)) for day in DAYS],
    pl.Series(DAYS).cast(pl.Datetime),
]


@pytest.mark.parametrize("times", HOURS, ids=["dates", "floats", "python", "polars"])
@pytest.mark.parametrize("embargo", [False, True])
def test_gaps_in_time(times: Any, embargo: bool) -> None:
    """Rows in any order are validated by their time, and none nearer than the gap is trained on."""
    order = rng.permutation(120)
    days = (DAYS - DAYS[0]).astype(int)[order]
    day: Any = (
        1.0 if isinstance(times, np.ndarray) and times.dtype == float else datetime.timedelta(1)
    )
    own = {"time": [times[int(i)] for i in order], "x": np.zeros(120)}
    options = {"embargo": 5 * day} if embargo else {"window": 20 * day}
    folds = make_folds(own, 4, "time", time="time", gap=3 * day, **options)
    for train, valid in folds:
        first, last = days[valid].min(), days[valid].max()
        assert set(np.flatnonzero((days >= first) & (days <= last))) == set(valid)
        past, later = (days <= first - 3), (days >= last + 3 + 5)
        expected = past | later if embargo else past & (days > first - 3 - 20)
        assert np.array_equal(train, np.flatnonzero(expected))
    if embargo:
        assert sorted(np.concatenate([valid for _, valid in folds])) == list(range(120))


def test_no_gap() -> None:
    """The gap is 0 without one, and not None as the other spans are."""
    with pytest.raises(TypeError, match="gap is None; expected a number of rows, or a float"):
        make_folds(10, 2, "time", gap=None)  # type: ignore[arg-type]


def test_rows_in_no_order() -> None:
    """A table with dates in disorder is no table in the order of time, unless `time` is said."""
    table = {"day": DAYS[::-1], "x": X[:, 0]}
    with pytest.raises(ValueError, match="not in the order of column 'day': pass time='day'"):
        make_folds(table, 4, "time")
    assert np.array_equal(
        make_folds(table, 4, "time", time="day").assignment[::-1],
        make_folds({"day": DAYS}, 4, "time").assignment,
    )


@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_objects_in_no_order(zone: str | None) -> None:
    """Dates of Python, and of pandas with a time zone, are dates, too; None among them is none."""
    pd: Any = pytest.importorskip("pandas")
    days = pd.Series(DAYS[::-1]).dt.tz_localize(zone)
    for own in (days, days.where(days.index != 3), [day.date() for day in days]):
        with pytest.raises(ValueError, match="not in the order of column 'day': pass time='day'"):
            make_folds({"day": own}, 4, "time")
        make_folds({"day": list(own)[::-1], "name": ["a", None] * 60}, 4, "time")


SLIPS: dict[str, tuple[dict[str, Any], str]] = {
    "zones": ({"time": ZONED}, "some times have a time zone and others have none: give all"),
    "texts": ({"time": DAYS.astype(str)}, "expected dates or numbers, since texts sort in"),
    "missing": (
        {"time": [None, *DAYS[1:]]},
        "1 of the times are missing, the first ones in rows 0",
    ),
    "one day": ({"time": np.zeros(120)}, "there are 1 different times for 4"),
    "no rows": ({"gap": 119}, "fold 0 has no rows to train on: use a smaller gap"),
    "a float": ({"time": DAYS, "gap": 1.5}, "gap is 1.5; expected a number of rows, or a datetime"),
    "days": (
        {"time": np.arange(120), "gap": datetime.timedelta(1)},
        "or a float, because the times",
    ),
    "both": ({"embargo": 1, "window": 5}, "leave out one of them"),
    "repeats": ({"repeats": 2}, "repeats of kind='time' would be equal"),
    "another kind": ({"kind": "kfold", "gap": 2}, "gap= is for kind='time', not for kind='kfold'"),
}


@pytest.mark.parametrize("name", SLIPS)
def test_slips_of_time(name: str) -> None:
    """What the times do not allow is an error that says so."""
    options, text = SLIPS[name]
    arguments: dict[str, Any] = {"kind": "time", **options}
    with pytest.raises((TypeError, ValueError), match=text):
        make_folds(120, 4, **arguments)


# ---------------------------------------------------------------- ranges, labels, repeats


def test_targets_of_a_range() -> None:
    """Folds that are alike in a number have nearly its distribution each; plain ones do not."""
    skewed = np.exp(2 * rng.normal(size=500))

    def furthest(folds: Folds) -> float:
        return max(float(stats.ks_2samp(skewed[valid], skewed)[0]) for _, valid in folds)

    assert furthest(make_folds(skewed, 5, "stratified")) < 0.05 < furthest(make_folds(500, 5))
    groups = rng.integers(0, 50, 500)
    assert len(make_folds(500, 5, "stratified_group", targets=skewed, groups=groups)) == 5
    counts = np.where(rng.random(300) < 0.9, 0, rng.integers(1, 1000, 300))  # mostly zero
    zeros = [(counts[valid] == 0).mean() for _, valid in make_folds(counts, 5, "stratified")]
    assert max(zeros) - min(zeros) < 0.02


@pytest.mark.parametrize("seed", range(3))
def test_several_labels(seed: int) -> None:
    """Each fold has as many rows of each label, also of rare ones, and no more rows than others."""
    labels = (rng.random((600, 6)) < [0.5, 0.3, 0.1, 0.05, 0.02, 0.01]).astype(int)
    table = {f"label {i}": column for i, column in enumerate(labels.T)} | {"x": np.zeros(600)}
    folds = make_folds(table, 5, "stratified", seed, targets=[f"label {i}" for i in range(6)])
    assert folds.hash == make_folds(600, 5, "stratified", seed, targets=labels).hash
    counts = np.array([labels[valid].sum(0) for _, valid in folds])
    assert (np.ptp(counts, 0) <= np.maximum(2, 0.05 * labels.sum(0))).all()
    assert np.ptp([len(valid) for _, valid in folds]) <= 6


def test_targets_of_one_column() -> None:
    """A column of a frame, and a frame of this column, are the same targets, groups and times."""
    pd: Any = pytest.importorskip("pandas")
    frame = pd.DataFrame({"y": rng.integers(0, 3, 60), "g": np.arange(60) // 4})
    targets = make_folds(60, 3, "stratified", targets=frame["y"])
    assert make_folds(60, 3, "stratified", targets=frame[["y"]]).hash == targets.hash
    assert make_folds(frame, 3, "stratified", targets=["y"]).hash == targets.hash
    assert check_folds(targets, frame[["y"]]).equals(check_folds(targets, frame["y"]))
    groups = make_folds(60, 3, "group", groups=frame["g"])
    assert make_folds(frame, 3, "group", groups=["g"]).hash == groups.hash
    parts = [
        (frame["y"].to_numpy()[valid] == 2).mean()
        for _, valid in make_folds(60, 3, "stratified", targets=frame[["y"]])
    ]
    assert np.ptp(parts) <= 0.05


def test_shares_of_labels() -> None:
    """A label counts once, whatever its number is, as in the folds."""
    labels = np.array([[3, 0], [0, 0], [5, 1], [0, 2]])
    table = check_folds(Folds(np.array([0, 0, 1, 1]), "kfold"), labels)
    assert table.select("label 0", "label 1").rows() == [(0.5, 0.0), (0.5, 1.0)]


def test_folds_by_hand() -> None:
    """Folds may be made of a list, a column or a tensor, also of no rows."""
    expected = Folds(np.array([0, 1, -1]), "kfold")
    assert Folds([0, 1, -1], "kfold").hash == expected.hash  # type: ignore[arg-type]
    assert Folds(np.array([0, 1, -1], np.int8), "kfold").assignment.dtype == np.int64
    assert list(Folds(np.array([]), "kfold")) == []


def test_gaps_of_numpy() -> None:
    """A gap of numpy is the gap that it is, in a file of folds, too."""
    made = make_folds(30, 3, "time", gap=2, path="gap.csv")
    assert make_folds(30, 3, "time", gap=np.int64(2), path="gap.csv").hash == made.hash


def test_repeats() -> None:
    """Repeated folds are those of the seeds that follow each other."""
    classes = np.arange(30) % 3
    folds = make_folds(classes, 3, "stratified", 7, repeats=2)
    singles = [make_folds(classes, 3, "stratified", seed) for seed in (7, 8)]
    expected = [pair for single in singles for pair in single]
    assert len(folds) == 6
    for ours, theirs in zip(folds, expected, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_files_of_any_folds(suffix: str) -> None:
    """Repeats and gaps come out of a file as they went in, and other ones are refused."""
    calls: dict[str, dict[str, Any]] = {
        "repeats": {"repeats": 2},
        "gap": {"kind": "time", "time": DAYS, "gap": 3, "embargo": 2},
    }
    for name, options in calls.items():
        path = Path(f"{name}.{suffix}")
        made, again = (make_folds(120, 3, path=path, **options) for _ in range(2))
        assert made.hash == again.hash
        assert all(np.array_equal(a[0], b[0]) for a, b in zip(made, again, strict=True))
    with pytest.raises(ValueError, match=f"gap.{suffix} was made with another n_folds"):
        make_folds(120, 3, "time", time=DAYS, gap=4, embargo=2, path=f"gap.{suffix}")


@pytest.mark.parametrize("none", [0, 0.0])
def test_an_embargo_of_nothing(none: float) -> None:
    """An embargo of no time keeps the gap behind the rows of validation."""
    days = np.datetime64("2024-01-01") + np.arange(30)
    numbers: Any = np.arange(30.0)
    dated = make_folds(
        30, 3, kind="time", time=days, gap=datetime.timedelta(2), embargo=datetime.timedelta(none)
    )
    plain = make_folds(30, 3, kind="time", time=numbers, gap=2.0, embargo=float(none))
    for (train, valid), (other, _) in zip(dated, plain, strict=True):
        np.testing.assert_array_equal(train, other)
        assert np.abs(train[:, None] - valid).min() >= 2


def test_one_rare_class_of_many() -> None:
    """One rare class among many whole numbers is told; the others stay classes."""
    targets = np.append(np.repeat(np.arange(24), 40), [24, 24, 24])
    with pytest.raises(ValueError, match="class 24 has 3 members, fewer than the 5 folds"):
        make_folds(targets, 5, kind="stratified")


def test_repeats_of_numpy() -> None:
    """The same number of repeats, of numpy, asks for the folds that the file has."""
    first = make_folds(12, 3, repeats=2, path="folds.csv")
    again = make_folds(12, 3, repeats=np.int64(2), path="folds.csv")
    np.testing.assert_array_equal(first.assignment, again.assignment)
