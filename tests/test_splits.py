"""Folds stay the same, leaks are found, and out-of-fold predictions are what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import sklearn
import torch
from ranks import run_ranks
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold, TimeSeriesSplit, cross_val_predict
from sweeps import sweep

from batteries import distributed
from batteries.splits import Folds, OutOfFold, check_folds, fold_indices, look, make_folds

CHANCE = np.random.default_rng(0)
TARGETS = CHANCE.integers(0, 3, 200)
GROUPS = np.array([f"patient {i}" for i in CHANCE.integers(0, 40, 200)])
TABLE = {"label": TARGETS, "patient": GROUPS, "age": CHANCE.normal(size=200)}
KINDS = ["kfold", "stratified", "group", "stratified_group", "time"]


def parts(folds: Folds) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    return [fold_indices(folds, fold) for fold in range(folds.n_folds)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_every_row_is_validated_once(kind: Any, seed: int) -> None:
    """Training and validation never overlap, and but for the order of time all rows are used."""
    groups = "patient" if "group" in kind else None
    folds = make_folds(TABLE, 5, kind, seed, targets="label", groups=groups)
    for train, valid in parts(folds):
        assert not set(train) & set(valid)
        if kind == "time":
            assert train.max() < valid.min()
        else:
            assert len(train) + len(valid) == 200
        if "group" in kind:
            assert not set(GROUPS[train]) & set(GROUPS[valid])
        if "stratified" in kind:
            shares = np.bincount(TARGETS[valid]) / len(valid) - np.bincount(TARGETS) / 200
            # Before 1.8 scikit-learn shuffles groups whose targets differ.
            assert abs(shares).max() < (0.2 if sklearn.__version__[:4] in ("1.6.", "1.7.") else 0.1)
    validated = np.concatenate([valid for _, valid in parts(folds)])
    assert len(validated) == len(set(validated))


def test_the_splitters_of_sklearn() -> None:
    """The folds are those that scikit-learn makes."""
    ours = parts(make_folds(TARGETS, 4, "stratified", seed=7))
    theirs = StratifiedKFold(4, shuffle=True, random_state=7).split(TARGETS, TARGETS)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(ours, theirs, strict=True))
    in_time = TimeSeriesSplit(4).split(np.zeros(200))
    for (train, valid), (their_train, their_valid) in zip(
        parts(make_folds(200, 4, "time")), in_time, strict=True
    ):
        assert np.array_equal(train, their_train)
        assert np.array_equal(valid, their_valid)


@pytest.mark.parametrize("table", [TABLE, pl.DataFrame(TABLE)])
def test_tables(table: Any) -> None:
    """A table's columns are the same as the arrays in it."""
    expected = make_folds(200, 3, "stratified_group", targets=TARGETS, groups=GROUPS)
    found = make_folds(table, 3, "stratified_group", targets="label", groups="patient")
    assert found.hash == expected.hash
    assert (
        make_folds(TARGETS, 3, "stratified").hash
        == make_folds(table, 3, "stratified", targets="label").hash
    )


@pytest.mark.parametrize("name", ["folds.csv", "folds.parquet"])
def test_files(name: str) -> None:
    """Folds in a file are loaded, not made again, and only for what they were made of."""
    made = make_folds(TARGETS, 3, "stratified", path=name)
    before = Path(name).stat().st_mtime_ns
    again = make_folds(TARGETS, 3, "stratified", path=name)
    assert np.array_equal(made.assignment, again.assignment)
    assert made.hash == again.hash
    assert Path(name).stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=f"{name} has folds of 200 rows, but the data has 199"):
        make_folds(TARGETS[1:], 3, "stratified", path=name)
    others: list[dict[str, Any]] = [
        {"seed": 1}, {"n_folds": 4}, {"kind": "kfold"}, {"data": TARGETS[::-1]},
    ]  # fmt: skip
    for other in others:
        arguments: dict[str, Any] = {"data": TARGETS, "n_folds": 3, "kind": "stratified", **other}
        with pytest.raises(ValueError, match=f"{name} was made with another n_folds, kind, seed"):
            make_folds(**arguments, path=name)


def test_damaged_files() -> None:
    """A file of folds in which one row was changed, or of something else, is refused."""
    make_folds(10, 2, path="folds.csv")
    text = Path("folds.csv").read_text()
    swapped = (
        text.replace("\n3,0,", "\n3,x,").replace("\n3,1,", "\n3,0,").replace("\n3,x,", "\n3,1,")
    )
    Path("folds.csv").write_text(swapped)
    with pytest.raises(ValueError, match=r"folds\.csv was changed since it was written"):
        make_folds(10, 2, path="folds.csv")
    Path("folds.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"folds\.csv is not a file of make_folds"):
        make_folds(10, 2, path="folds.csv")


@pytest.mark.parametrize("name", ["folds.csv", "folds.parquet"])
def test_any_damage(name: str) -> None:
    """A file of folds that was cut or changed anywhere has the same folds, or is a named error."""
    made, path = make_folds(10, 2, path=name), Path(name)
    data = path.read_bytes()
    cut = [data[:size] for size in range(0, len(data), 37)]
    changed = [data[:at] + b"\xff" + data[at + 1 :] for at in range(0, len(data), 37)]
    for damaged in [*cut, *changed, data.replace(b"3,0,", b"3,,"), data.replace(b",0,", b",x,")]:
        path.write_bytes(damaged)
        try:
            assert make_folds(10, 2, path=name).hash == made.hash
        except ValueError as error:
            assert name in str(error)  # noqa: PT017


def folds_on_a_rank(path: str, seed: int = 0) -> str:
    return make_folds(TARGETS, 3, "stratified", seed * distributed.rank(), path=path).hash


def test_ranks(tmp_path: Path) -> None:
    """All ranks have the same folds, and one file is written."""
    assert len(set(run_ranks(folds_on_a_rank, str(tmp_path / "folds.csv"), world_size=3))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folds.csv"]


def test_errors_of_the_disk_on_ranks(tmp_path: Path) -> None:
    """An error of the disk on rank 0 reaches all ranks, which get the same; none goes on."""
    (tmp_path / "file").touch()
    for error in run_ranks(folds_on_a_rank, str(tmp_path / "file" / "folds.csv")):
        assert isinstance(error, OSError)
        assert "folds.csv" in str(error)
    zero, one = run_ranks(folds_on_a_rank, str(tmp_path / "folds.csv"), 1)
    assert isinstance(zero, str)
    assert "rank 1 has other data or arguments than rank 0" in str(one)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"data": 3, "n_folds": 4}, "n_folds is 4; expected 2 to 3"),
        ({"data": 3, "n_folds": 1}, "n_folds is 1; expected 2 to 3"),
        ({"data": 3, "n_folds": 2, "kind": "random"}, "kind is 'random'; expected one of kfold,"),
        ({"data": 9, "kind": "stratified"}, "kind 'stratified' needs targets="),
        ({"data": [0] * 9 + [1] * 2, "n_folds": 3, "kind": "stratified"}, "class 1 has 2 members"),
        ({"data": 4, "n_folds": 2, "kind": "group", "groups": [1, 1]}, "2 groups for 4 rows"),
        (
            {"data": 4, "n_folds": 2, "kind": "group", "groups": ["a", None, "b", None]},
            "2 of the groups are missing, the first ones in rows 1, 3: fill",
        ),
        (
            {"data": 4, "n_folds": 2, "kind": "group", "groups": [1.0, np.nan, 2.0, 3.0]},
            "1 of the groups are missing",
        ),
        (
            {"data": 4, "n_folds": 3, "kind": "group", "groups": [1, 1, 2, 2]},
            "2 groups for 3 folds",
        ),
        ({"data": TABLE, "kind": "group", "groups": "name"}, "there is no column 'name'; expected"),
        ({"data": TABLE, "groups": "patient"}, "kind='kfold' would divide the groups"),
        ({"data": TABLE, "kind": "time", "groups": GROUPS}, "kind='time' would divide the groups"),
        (
            {"data": TABLE, "kind": "group", "groups": ["label", "patient"]},
            r"groups have shape \(200, 2\); expected \(rows,\): join the columns",
        ),
    ],
)
def test_bad_requests(arguments: dict[str, Any], text: str) -> None:
    """What cannot be divided is an error that says why."""
    with pytest.raises(ValueError, match=text):
        make_folds(**arguments)


def test_no_such_fold() -> None:
    """A fold that is not there is an error."""
    with pytest.raises(IndexError, match="there is no fold 5: they are 0 to 4"):
        fold_indices(make_folds(20), 5)


# ---------------------------------------------------------------- leaks


def test_the_table() -> None:
    """Sizes and the parts of the classes are those of the rows."""
    folds = make_folds(TARGETS, 4, "stratified")
    table = check_folds(folds, TARGETS, data=np.arange(200))
    for fold, row in enumerate(table.iter_rows(named=True)):
        train, valid = fold_indices(folds, fold)
        assert (row["train"], row["valid"]) == (len(train), len(valid))
        assert row["class 2"] == pytest.approx((TARGETS[valid] == 2).mean())
    assert "mean" in check_folds(folds, CHANCE.normal(size=200)).columns


def test_groups_on_both_sides() -> None:
    """A group that is trained and validated on is an error that names it."""
    with pytest.raises(ValueError, match=r"in fold 0 \d+ validation rows are in groups .*patient"):
        check_folds(make_folds(200), groups=GROUPS)
    check_folds(make_folds(TABLE, kind="group", groups="patient"), groups=GROUPS)
    with pytest.raises(ValueError, match=r"groups have shape \(200, 2\); expected \(rows,\)"):
        check_folds(make_folds(200), groups=["label", "patient"], data=TABLE)


IMAGES = torch.rand(20, 1, 4, 4)
IMAGES[13] = IMAGES[2]
DATA = {
    "tensors": IMAGES,
    "arrays": IMAGES.numpy(),
    "bytes": [image.numpy().tobytes() for image in IMAGES],
    "texts": [str(image.tolist()) for image in IMAGES],
    "table": {"a": IMAGES[:, 0, 0, 0].numpy(), "b": IMAGES[:, 0, 1, 1].numpy()},
    "ragged": [image.reshape(-1)[: 3 + i % 11] for i, image in enumerate(IMAGES)],
}


@pytest.mark.parametrize("name", DATA)
def test_duplicates_on_both_sides(name: str) -> None:
    """Exact duplicates are found, of any kind of data, where they are on both sides."""
    apart = Folds(np.array([0] * 10 + [1] * 10), "kfold")
    with pytest.raises(
        ValueError, match=r"in fold 0 1 validation rows have exact duplicates in tr"
    ):
        check_folds(apart, data=DATA[name])
    together = Folds(np.arange(20) == 19, "kfold").assignment.astype(int)
    assert len(check_folds(Folds(together, "kfold"), data=DATA[name])) == 2


def test_many_classes() -> None:
    """Of many classes the rarest are in one column, and a fold's parts add up to 1."""
    targets = np.array([f"{i:02}" for i in range(25) for _ in range(4 if i < 5 else 8)])
    table = check_folds(make_folds(targets, 4, "stratified"), targets)
    assert "class 05" in table.columns
    assert "class 04" not in table.columns
    assert table["5 other classes"].to_list() == pytest.approx([5 / 45] * 4)
    parts = table.drop("fold", "train", "valid").sum_horizontal()
    assert parts.to_list() == pytest.approx([1.0] * 4)


@pytest.mark.parametrize(
    ("assignment", "kind", "text"),
    [
        ([0, 0, 2, 2], "kfold", "fold 1 is empty: it has no rows to validate on"),
        ([0, 0], "kfold", "fold 0 is empty: it has no rows to train on"),
        ([0, 1], "time", "fold 0 is empty: it has no rows to train on"),
    ],
)
def test_empty_folds(assignment: list[int], kind: str, text: str) -> None:
    """A fold without rows is called empty, and no leak."""
    with pytest.raises(ValueError, match=f"^{text}$"):
        check_folds(Folds(np.array(assignment), kind), targets=np.zeros(len(assignment)))


def test_other_rows() -> None:
    """Folds for another number of rows are an error."""
    with pytest.raises(ValueError, match="targets has 3 rows, but the folds have 200"):
        check_folds(make_folds(200), targets=[1, 2, 3])


# ---------------------------------------------------------------- a look


def test_train_and_test_alike() -> None:
    """The classifier tells shifted data from train, and not data of the same kind."""
    train = {"x": CHANCE.normal(size=400), "city": CHANCE.choice(["a", "b"], 400)}
    same = {"x": CHANCE.normal(size=300), "city": CHANCE.choice(["a", "b"], 300)}
    other = {"x": CHANCE.normal(size=300), "city": CHANCE.choice(["b", "c"], 300)}
    assert look(train, same).auc == pytest.approx(0.5, abs=0.12)
    assert look(train, other).auc > 0.7
    assert look(train, other).auc == look(train, other).auc


def test_what_there_is() -> None:
    """Dtypes, missing values and classes are those of the columns."""
    train = pl.DataFrame(
        {"x": [1.0, None, 3.0] * 20, "n": [None, "a", "b"] * 20, "y": [0, 1, 1] * 20}
    )
    seen = look(train, train.drop("y"), targets="y")
    rows = {row["column"]: row for row in seen.columns.iter_rows(named=True)}
    assert (rows["x"]["missing in train"], rows["n"]["missing in test"]) == (20, 20)
    assert (rows["y"]["test dtype"], rows["y"]["missing in test"]) == (None, None)
    assert seen.classes is not None
    assert seen.classes["part"].to_list() == pytest.approx([1 / 3, 2 / 3])


@pytest.mark.parametrize("columns", [sweep(1), 80])
def test_infinities(columns: int) -> None:
    """Infinities are counted, and neither hide nor make a difference; huge numbers do not fail."""
    chance = np.random.default_rng(0)
    train = {f"x{i}": chance.normal(size=200) for i in range(columns)}
    test = {f"x{i}": chance.normal(size=200) for i in range(columns)}
    test["x0"][:2] = np.inf, -np.inf
    seen = look(train, test)
    assert seen.columns.row(0, named=True)["infinite in test"] == 2
    assert seen.columns.row(0, named=True)["infinite in train"] == 0
    assert seen.auc == pytest.approx(0.5, abs=0.12)
    moved = {name: values + 3 for name, values in test.items()}
    assert look(train, moved).auc > 0.9
    train["x0"][0] = 1e300
    assert np.isfinite(look(train, test).auc)


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_too_few_rows(rows: int) -> None:
    """With fewer than five rows on a side what there is is told, and nothing is compared."""
    few, many = {"x": np.arange(float(rows))}, {"x": np.arange(30.0)}
    seen = look(few, many, targets=["a", "b", "a", "b"][:rows])
    assert np.isnan([seen.auc, seen.spread]).all()
    assert seen.note.startswith(f"too few rows to compare: {rows} in train and 30 in test")
    assert seen.columns["missing in test"].to_list() == [0]
    assert look(many, {"x": np.arange(5.0)}).note == ""


def test_missing_targets() -> None:
    """Targets that are missing are a row of their own beside the classes."""
    seen = look({"x": np.arange(5.0)}, {"x": np.arange(10.0)}, targets=["a", "b", None, "b", "b"])
    assert seen.classes is not None
    assert seen.classes.rows() == [("a", 1, 0.2), ("b", 3, 0.6), (None, 1, 0.2)]


DAYS = np.arange(20).astype("datetime64[D]")


@pytest.mark.parametrize(
    "other", [DAYS.astype(str), np.arange(20), np.arange(20.0)], ids=["texts", "ints", "floats"]
)
def test_other_dtypes(other: Any) -> None:
    """Dates on one side and something else on the other are seen, and compared as texts."""
    seen = look({"day": DAYS}, {"day": other})
    row = seen.columns.row(0, named=True)
    assert row["train dtype"] != row["test dtype"]
    assert np.isfinite(seen.auc)


def test_other_shapes() -> None:
    """Rows of different shapes, and columns of different lengths, are errors that name them."""
    text = r"the rows of 'values' have shape \(3,\) in train but \(4,\) in test"
    with pytest.raises(ValueError, match=text):
        look(np.zeros((9, 3)), np.zeros((9, 4)))
    with pytest.raises(ValueError, match=r"columns of a table have different lengths: \{'a': 9, "):
        look({"a": np.zeros(9), "b": np.zeros(8)}, {"a": np.zeros(9)})


def test_wide_tables() -> None:
    """Columns that are in both stand after any number of columns that are in train alone."""
    train = {f"x{i}": np.arange(10.0) for i in range(150)}
    seen = look(train, {"x149": np.arange(10.0)})
    assert seen.columns["missing in test"].to_list() == [None] * 149 + [0]


def test_images() -> None:
    """Images are compared too, by projections of their pixels."""
    images = torch.rand(120, 3, 16, 16)
    assert look(images[:60], images[60:] + 0.5).auc > 0.9
    with pytest.raises(ValueError, match="train and test have no column in common"):
        look({"a": [1]}, {"b": [1]})


# ---------------------------------------------------------------- out of fold


def test_the_same_as_sklearn() -> None:
    """Out-of-fold predictions and their scores are those of scikit-learn's cross-validation."""
    data = load_digits()
    images, labels = data.data[:300] / 16, data.target[:300]
    folds, model = make_folds(labels, 3, "stratified", seed=1), LogisticRegression()
    collected = OutOfFold(folds)
    tests = []
    for fold in (2, 0, 1):
        train, valid = fold_indices(folds, fold)
        model.fit(images[train], labels[train])
        tests.append(model.predict_proba(data.data[300:320] / 16))
        collected.add(fold, model.predict_proba(images[valid]), tests[-1], trained_on=folds.hash)
    splitter = StratifiedKFold(3, shuffle=True, random_state=1)
    expected = cross_val_predict(model, images, labels, cv=splitter, method="predict_proba")
    np.testing.assert_array_equal(collected.predictions, expected)
    np.testing.assert_allclose(collected.test, np.mean(tests, axis=0), rtol=1e-15)
    score = collected.score(labels, lambda y, p: accuracy_score(y, p.argmax(1)))
    assert score.value == accuracy_score(labels, expected.argmax(1))
    by_fold = [
        accuracy_score(labels[valid], expected[valid].argmax(1)) for _, valid in parts(folds)
    ]
    assert score.folds == by_fold
    assert score.spread == pytest.approx(np.std(by_fold, ddof=1))
    auc = collected.score(labels == 3, lambda y, p: roc_auc_score(y, p[:, 3]))
    assert auc.value == roc_auc_score(labels == 3, expected[:, 3])


def test_in_the_order_of_time() -> None:
    """Rows that no fold validates have no prediction, and do not count in the score."""
    folds = make_folds(10, 4, "time")
    collected = OutOfFold(folds)
    for fold, (_, valid) in enumerate(parts(folds)):
        collected.add(fold, valid, trained_on=folds.hash)
    assert np.isnan(collected.predictions[:2]).all()
    assert collected.predictions[2:].tolist() == list(range(2, 10))
    score = collected.score(np.arange(10), accuracy_score)
    assert (score.value, score.rows) == (1.0, 8)


def test_what_does_not_fit() -> None:
    """A fold of other splits, one that comes twice, and other shapes are refused."""
    folds, other = make_folds(10, 2, seed=0), make_folds(10, 2, seed=1)
    collected = OutOfFold(folds)
    with pytest.raises(ValueError, match=r"fold 0 was trained on other folds .* it has seen rows"):
        collected.add(0, np.zeros(5), trained_on=other.hash)
    with pytest.raises(ValueError, match="fold 0 has 5 rows, but there are 4 predictions"):
        collected.add(0, np.zeros(4), trained_on=folds.hash)
    collected.add(0, np.zeros((5, 2)), np.zeros(3), trained_on=folds.hash)
    for again in (0, -2):
        with pytest.raises(ValueError, match="fold 0 was added before"):
            collected.add(again, np.zeros((5, 2)), trained_on=folds.hash)
    with pytest.raises(
        ValueError, match=r"fold 1 has rows of shape \(5,\), but earlier folds have"
    ):
        collected.add(1, np.zeros(5), trained_on=folds.hash)
    with pytest.raises(ValueError, match=r"fold 1 has test rows of shape \(4,\), but earlier"):
        collected.add(1, np.zeros((5, 2)), np.zeros(4), trained_on=folds.hash)
    assert collected.missing == [1]
    for name in ("predictions", "test"):
        with pytest.raises(ValueError, match=r"1 of 2 folds are missing \(1\): add"):
            getattr(collected, name)


def test_folds_without_test_predictions() -> None:
    """A fold that was added without `test=` is not missing; the error says what it lacks."""
    whole, some = (OutOfFold(make_folds(4, 2), allow_missing=flag) for flag in (False, True))
    with pytest.raises(ValueError, match=r"2 of 2 folds are missing \(0, 1\): add at least one$"):
        _ = some.predictions
    for oof in (whole, some):
        oof.add(0, [0.1, 0.2])
    whole.add(1, [0.1, 0.2], test=[1.0])
    lacking = r" have no test predictions \(0\): pass test= to add for each fold"
    with pytest.raises(ValueError, match=rf"1 of 2 folds{lacking}, or pass allow_missing=True$"):
        _ = whole.test
    with pytest.raises(ValueError, match=rf"1 of 2 folds{lacking}$"):
        _ = some.test


def test_one_number_for_a_fold() -> None:
    """One number is not an array of predictions, or a table; the errors say so."""
    with pytest.raises(ValueError, match="fold 0 has 2 rows, but there are 1 predictions"):
        OutOfFold(make_folds(4, 2)).add(0, 3.0)
    with pytest.raises(TypeError, match="data is 3; expected a table, an array or a tensor of"):
        look(3, 4)


def test_folds_of_other_dtypes() -> None:
    """Predictions keep the widest dtype of the folds, and are copies of what was passed."""
    folds = Folds(np.array([0, 1]), "kfold")
    collected, buffer = OutOfFold(folds), np.array([7])
    collected.add(0, buffer, buffer, trained_on=folds.hash)
    buffer[:] = 0
    collected.add(1, [0.5], [2.0], trained_on=folds.hash)
    assert collected.predictions.tolist() == [7, 0.5]
    assert collected.test.tolist() == [4.5]


def test_texts_out_of_fold() -> None:
    """Texts of some of the folds have NaN elsewhere, and not the text 'nan'; texts have no mean."""
    texts = OutOfFold(Folds(np.array([0, 0, -1]), "kfold"))
    texts.add(0, ["cat", "dog"], test=["cat"])
    assert texts.predictions.tolist()[:2] == ["cat", "dog"]
    assert texts.predictions[2] != texts.predictions[2]
    assert texts.score(["cat", "cat", "dog"], "accuracy").value == 0.5
    with pytest.raises(TypeError, match="the test predictions are texts, which have no mean"):
        _ = texts.test
    repeated = OutOfFold(Folds(np.array([[0, 0], [0, 0]]), "kfold"))
    for fold in range(2):
        repeated.add(fold, np.array(["cat", "dog"], object))
    with pytest.raises(TypeError, match="the predictions are texts, which have no mean: add"):
        _ = repeated.predictions


def test_some_of_the_folds() -> None:
    """With `allow_missing`, rows of folds that are missing are NaN, and are not scored."""
    folds = make_folds(12, 4)
    oof, whole = OutOfFold(folds, allow_missing=True), OutOfFold(folds)
    with pytest.raises(ValueError, match=r"4 of 4 folds are missing \(0, 1, 2, 3\)"):
        _ = oof.predictions
    for fold in (3, 1):
        oof.add(fold, folds[fold][1] / 10, [float(fold)])
        whole.add(fold, folds[fold][1] / 10)
    there = np.isin(folds.assignment, (1, 3))
    np.testing.assert_array_equal(np.isnan(oof.predictions), ~there)
    score = oof.score(np.arange(12) / 10, "neg_mean_absolute_error")
    assert (score.value, score.rows, len(score.folds)) == (0.0, 6, 2)
    assert oof.test == 2.0
    with pytest.raises(ValueError, match=r"2 of 4 folds are missing \(0, 2\)"):
        _ = whole.predictions


def test_out_of_repeated_folds() -> None:
    """Predictions of repeated folds are the mean over the repeats."""
    folds = make_folds(9, 3, repeats=2)
    oof = OutOfFold(folds)
    for fold, (_, valid) in enumerate(folds):
        oof.add(fold, np.stack([valid, valid + 10 * (fold // 3)], axis=1))
    np.testing.assert_allclose(oof.predictions, np.stack([np.arange(9), np.arange(9) + 5], 1))


class Opaque:
    """Its repr says where it lies."""


def test_samples_of_several_parts() -> None:
    """Long samples that differ in one number are no duplicates; what cannot be compared is said."""
    folds, images = Folds(np.array([0, 1]), "kfold"), torch.zeros(2, 3000)
    images[1, 1500] = 1
    data = [(image, {"label": 1}) for image in images]
    assert len(check_folds(folds, data=data)) == 2
    with pytest.raises(ValueError, match="exact duplicates"):
        check_folds(folds, data=[data[0], data[0]])
    nears: list[Any] = [None, "rounded"]
    for near in nears:
        with pytest.raises(ValueError, match="duplicates"):
            check_folds(folds, data=torch.ones(2, 3, dtype=torch.bfloat16), near=near)
    with pytest.raises(TypeError, match="a Opaque cannot be compared: pass arrays, bytes or texts"):
        check_folds(folds, data=[Opaque(), Opaque()])


MISSING: list[Any] = [
    ["a", "b", None, "c"],
    ["a", "b", float("nan"), "c"],
    np.array(["2020-01-01", "2021-01-01", "NaT", "2022-01-01"], dtype="datetime64[D]"),
    pl.Series(["a", "b", None, "c"]),
    pl.Series([1, 2, None, 3]),
]


@pytest.mark.parametrize("groups", MISSING, ids=str)
def test_missing_groups(groups: Any) -> None:
    """A missing group is noticed whatever it is: None, NaN, NaT, a null."""
    with pytest.raises(ValueError, match="1 of the groups are missing, the first ones in rows 2"):
        make_folds(4, 2, "group", groups=groups)
    with pytest.raises(ValueError, match="1 of the targets are missing, the first ones in rows 2"):
        make_folds(groups, 2, "stratified")
    folds = make_folds(4, 2)
    with pytest.raises(ValueError, match="1 of the targets are missing, the first ones in rows 2"):
        check_folds(folds, targets=groups)
    with pytest.raises(ValueError, match="1 of the groups are missing, the first ones in rows 2"):
        check_folds(folds, groups=groups)


def test_numbers_of_numpy() -> None:
    """Counts and seeds of numpy are the numbers that they are."""
    made = make_folds(10, 2, seed=1, path="folds.csv")
    again = make_folds(np.int64(10), np.int64(2), seed=np.int64(1), path="folds.csv")
    assert made.hash == again.hash


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("n_splits", "n_folds="),
        ("random_state", "seed="),
        ("y", "targets="),
        ("shuffle", "nothing"),
    ],
)
def test_the_spellings_of_scikit_learn(name: str, hint: str) -> None:
    """An argument as scikit-learn spells it is an error that says ours."""
    options: dict[str, Any] = {name: 5}
    with pytest.raises(TypeError, match=f"make_folds has no argument '{name}': say {hint}"):
        make_folds(10, **options)


def test_targets_by_name() -> None:
    """The name of a column is that column, and no array of letters."""
    table = {"target": [0, 0, 1, 1, 0, 1], "patient": [1, 2, 3, 4, 5, 6], "x": [1, 2, 3, 4, 5, 6]}
    folds = make_folds(table, 2, "stratified", targets="target")
    named = check_folds(folds, "target", groups="patient", data=table)
    assert named.equals(check_folds(folds, table["target"], groups=table["patient"], data=table))
    with pytest.raises(ValueError, match="there is no column 'target'; data is not a table"):
        check_folds(folds, "target")
    with pytest.raises(ValueError, match="there is no column 'label'; expected one of "):
        check_folds(folds, "label", data=table)


# ---------------------------------------------------------------- duplicates behind ids, and near


def test_ids_hide_no_duplicates() -> None:
    """Rows that are equal but for an id are duplicates, and the error says what was left out."""
    folds = Folds(np.array([0, 1] * 4), "kfold")
    table = {
        "id": [f"a{i}" for i in range(8)],
        "text": ["so long", *(f"text {i}" for i in range(7))],
    }
    assert len(check_folds(folds, data=table)) == 2
    table["text"][3] = "so long"
    with pytest.raises(
        ValueError, match=r"exact duplicates in training \(0\).*Not compared: 'id'; "
    ):
        check_folds(folds, data=pl.DataFrame(table))
    assert len(check_folds(folds, data=table, ids=[])) == 2
    assert len(check_folds(folds, data={"id": table["id"], "y": [0, 1] * 4}, targets="y")) == 2


def test_nearly_the_same_numbers() -> None:
    """Rows that differ by little are found by rounding, and rows of other numbers are not."""
    chance = np.random.default_rng(0)
    table: dict[str, Any] = {
        "x": 1000 * chance.normal(size=60),
        "word": [f"Word {i}" for i in range(60)],
    }
    folds = Folds(np.arange(60) % 2, "kfold")
    assert len(check_folds(folds, data=table, near="rounded")) == 2
    table["x"][7], table["word"][7] = table["x"][2] + 1, "WORD  2 "
    with pytest.raises(ValueError, match=r"have near duplicates in training \([27]\)"):
        check_folds(folds, data=table, near="rounded")
    check_folds(folds, data=table)
    with pytest.raises(ValueError, match="needs a table, or rows of equally many numbers"):
        check_folds(folds, data=["a"] * 30 + ["b"] * 30, near="rounded")


def test_nearly_the_same_images() -> None:
    """Images in other sizes, lighter or with noise have the same hash; other images do not."""
    coarse = torch.rand(40, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, (48, 48), mode="bicubic")
    other = [
        torch.nn.functional.interpolate(images[:1], (96, 96), mode="bilinear")[0].permute(1, 2, 0),
        (images[1] * 0.7 + 0.2).numpy(),
        images[2] + 0.01 * torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(1)),
    ]
    for at, image in enumerate(other):
        folds = Folds(np.array([0] * 40 + [1]), "kfold")
        with pytest.raises(
            ValueError, match=rf"1 validation rows have near .* \({at}\); in fold 1"
        ):
            check_folds(folds, data=[*images, image], near="images")
    assert len(check_folds(Folds(np.arange(40) % 2, "kfold"), data=images, near="images")) == 2
    with pytest.raises(
        ValueError, match="images of at least 16 x 16 pixels; found an array of sha"
    ):
        check_folds(Folds(np.arange(40) % 2, "kfold"), data=coarse, near="images")


# ---------------------------------------------------------------- a look at columns


def test_what_columns_tell(tmp_path: Path) -> None:
    """What differs, leaks, names a group or a row, or is missing together is told of columns."""
    chance = np.random.default_rng(0)
    sides: list[dict[str, Any]] = []
    for side in range(2):
        gone = chance.random(250) < 0.2
        sides.append(
            {
                "id": np.arange(250) + 250 * side,
                "shop": np.array([f"s{i}" for i in chance.integers(0, 20, 250) + 20 * side]),
                "drift": chance.normal(2 * side, 1, 250),
                "noise": np.where(gone, np.nan, chance.normal(size=250)),
                "word": [None if it else "a" for it in gone],
            }
        )
    train = sides[0] | {"y": chance.integers(0, 2, 250), "price": chance.normal(size=250)}
    train["late"] = np.where(train["y"] > 0, 3.0, 1.0) + chance.random(250)
    sides[1] |= {"late": train["late"], "price": train["price"]}
    seen = look(train, sides[1], "y", groups="shop")
    rows = {row["column"]: row for row in seen.columns.iter_rows(named=True)}
    assert [rows[name]["kind"] for name in ("id", "shop", "y", "drift")] == [
        "id", "group", "target", "feature"
    ]  # fmt: skip
    told = {name: row["tells test"] for name, row in rows.items() if row["tells test"] is not None}
    assert max(told, key=lambda name: told[name]) == "drift"
    assert not {"id", "shop", "y"} & set(told)
    assert max(abs(told[name]) for name in told if name != "drift") < 0.1 < told["drift"]
    assert seen.leaks == ["late"]
    assert rows["noise"]["tells target"] == pytest.approx(0.5, abs=0.1)
    assert (rows["shop"]["known in test"], rows["word"]["known in test"]) == (0.0, 1.0)
    assert seen.missing is not None
    assert seen.missing["missing"].to_list() == ["noise, word"]
    assert seen.missing["in test"][0] == int(np.isnan(sides[1]["noise"]).sum())
    assert look(train, sides[1], "late").leaks == []
    alone = {"n": np.arange(40)}  # with nothing but an id, that is compared
    assert look(alone, {"n": np.arange(40) + 40}).auc > 0.9
    assert look(train | {"cost": 3 * train["price"] + 1}, sides[1], "price").leaks == ["cost"]
    pytest.importorskip("matplotlib")
    seen.plot(tmp_path / "look.png")
    assert (tmp_path / "look.png").read_bytes().startswith(b"\x89PNG")
