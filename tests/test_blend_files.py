"""Files of predictions, blended by id: whatever their order, and nothing silently wrong."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import warm
from scipy import stats

from batteries import Predictions
from batteries.blend import blend_files, check_submission, mean, rank_average
from batteries.blend._tables import in_order

rng = np.random.default_rng(0)
IDS = [f"img_{i:04}" for i in rng.permutation(200)]
SCORES = rng.random((3, 200))


def write(path: str, scores: Any, ids: Any = IDS, order: Any = None, **columns: Any) -> str:
    table = pl.DataFrame({"id": ids, "target": scores, **columns})
    table = table if order is None else table[order]
    table.write_csv(path) if path.endswith("csv") else table.write_parquet(path)
    return path


@pytest.mark.parametrize("method", ["mean", "power", "geometric", "rank", "vote"])
@pytest.mark.parametrize("shuffled", [(), (1,), (0, 1, 2)])
def test_the_order_of_rows_does_not_matter(method: Any, shuffled: tuple[int, ...]) -> None:
    """Rows are blended by id; the result has the order of the first file."""
    scores = np.round(SCORES) if method == "vote" else SCORES
    orders = [rng.permutation(200) if i in shuffled else np.arange(200) for i in range(3)]
    paths = [
        write(f"{i}.{'parquet' if i == 2 else 'csv'}", scores[i], order=orders[i]) for i in range(3)
    ]
    found = blend_files(paths, method, power=3, weights=[1, 2, 3])
    ordered = [write(f"o{i}.csv", scores[i]) for i in range(3)]
    expected = blend_files(ordered, method, power=3, weights=[1, 2, 3])
    assert found.columns == ["id", "target"]
    assert found["id"].to_list() == [IDS[i] for i in orders[0]]
    blends = [table["target"].cast(pl.Float64).to_numpy() for table in (found, expected)]
    np.testing.assert_allclose(blends[0], blends[1][orders[0]], 1e-12)


def test_methods_are_the_functions() -> None:
    """A blend of files is that of the arrays in them, which numpy and scipy know."""
    paths = [write(f"{i}.csv", SCORES[i]) for i in range(3)]
    means = blend_files(paths)["target"].to_numpy()
    np.testing.assert_allclose(means, SCORES.mean(0), rtol=1e-12)
    by_rank = blend_files(paths, "rank")["target"].to_numpy()
    np.testing.assert_allclose(by_rank, stats.rankdata(SCORES, axis=1).mean(0) / 200, rtol=1e-12)
    power = blend_files(paths, "power", power=3)["target"].to_numpy()
    np.testing.assert_allclose(power, stats.pmean(SCORES, 3), rtol=1e-12)


@pytest.mark.parametrize(
    ("scores", "ids", "message"),
    [
        (SCORES[1][1:], IDS[1:], f"b.csv has no row of id {IDS[0]}, which a.csv has; 1 ids are"),
        (
            np.append(SCORES[1], 1.0), [*IDS, "new"],
            "b.csv has a row of id new, which a.csv does not have; 1 ids are only in",
        ),
        (SCORES[1], [IDS[1], *IDS[1:]], f"b.csv has the id {IDS[1]} more than once"),
        (SCORES[1], [None, *IDS[1:]], "b.csv has no id in row 0"),
        (
            np.where(np.arange(200) == 7, np.nan, SCORES[1]), IDS,
            f"b.csv, column 'target', has nan in the row of id {IDS[7]}; expected finite",
        ),
        (
            [None if i == 7 else 0.5 for i in range(200)], IDS[::-1],
            f"b.csv has nothing in column 'target' for id {IDS[::-1][7]}",
        ),
        (["word"] * 200, IDS, "b.csv cannot be read: .*word"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit(scores: Any, ids: Any, message: str) -> None:
    """Ids that are missing, more, repeated or without a number are named, with their file."""
    write("a.csv", SCORES[0])
    write("b.csv", scores, ids=ids)
    for kind in ("mean", "rank"):
        with pytest.raises(ValueError, match=message):
            blend_files(["a.csv", "b.csv"], kind, out="blend.csv")
    assert not Path("blend.csv").exists()


def test_columns_that_do_not_fit() -> None:
    """Other columns are named; `columns` says which are blended, and the rest is the first's."""
    first = write("a.csv", SCORES[0], fold=["007"] * 200)
    second = write("b.csv", SCORES[1])
    with pytest.raises(ValueError, match=r"b.csv has other columns than a.csv: only one of them"):
        blend_files([first, second])
    found = blend_files([first, second], columns=["target"], out="blend.csv")
    assert found.columns == ["id", "target", "fold"]
    assert pl.read_csv("blend.csv", infer_schema=False)["fold"].unique().to_list() == ["007"]
    with pytest.raises(ValueError, match=r"b.csv has no column 'fold'; it has id, target"):
        blend_files([first, second], columns=["target", "fold"])
    with pytest.raises(ValueError, match=r"a.csv has no column 'name'"):
        blend_files([first, second], id_column="name")
    words = [write(f"{name}.parquet", SCORES[0], word=["x"] * 200) for name in "cd"]
    with pytest.raises(
        ValueError, match=r"c.parquet has String in column 'word'; expected numbers"
    ):
        blend_files(words)


def test_what_is_asked_for() -> None:
    """Unknown methods and kinds of files are named."""
    path = write("a.csv", SCORES[0])
    with pytest.raises(ValueError, match="method is 'median'; expected one of mean, power"):
        blend_files([path], "median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a blend is written as .csv or .parquet, not as b.txt"):
        blend_files([path], out="b.txt")
    with pytest.raises(
        ValueError, match=r"c.txt has an unknown format; expected .csv, .parquet or .npy"
    ):
        blend_files(["c.txt"])
    with pytest.raises(ValueError, match="there are no files to blend"):
        blend_files([])
    with pytest.raises(ValueError, match="labels are not probabilities"):
        blend_files([path], "vote", renormalise=True)
    for columns in ([], ["id", "target"], ["target", "target"]):
        with pytest.raises(ValueError, match=r"the columns to blend are \[.*expected one or more"):
            blend_files([path], columns=columns)


@pytest.mark.parametrize(("name", "text"), [("b.csv", ""), ("b.parquet", "PAR1, or not")])
def test_files_that_cannot_be_read(name: str, text: str) -> None:
    """An empty or foreign file is named."""
    Path(name).write_text(text)
    for paths in ([name], [write("a.csv", SCORES[0]), name]):
        with pytest.raises(ValueError, match=f"{name} cannot be read: "):
            blend_files(paths)


def test_ranks_keep_their_order_in_a_file() -> None:
    """Ranks are written with the decimals that they need, whatever the first file has."""
    numbers = rng.permutation(100_000) / 1e5
    pl.DataFrame({"id": range(100_000), "p": numbers}).write_csv("a.csv", float_precision=5)
    pl.DataFrame({"id": range(100_000), "p": numbers[::-1]}).write_csv("b.csv", float_precision=5)
    found = blend_files(["a.csv", "b.csv"], "rank", weights=[1, 2], out="blend.csv")
    assert pl.read_csv("blend.csv")["p"].equals(found["p"])


def test_files_without_rows() -> None:
    """Files that have a header alone have a blend that has one alone."""
    Path("a.csv").write_text("id,p\n")
    for method in ("mean", "power", "geometric", "rank", "vote"):
        assert blend_files(["a.csv", "a.csv"], method).shape == (0, 2)


def test_ids_are_text_and_decimals_stay() -> None:
    """Ids keep their zeros; numbers have the first file's decimals, or as many as they need."""
    Path("a.csv").write_text("id,p\n007,0.1250000\n010,1.0000000\n")
    Path("b.csv").write_text("id,p\n010,0.5\n007,0.25\n")
    blend_files(["a.csv", "b.csv"], out="fixed.csv")
    assert Path("fixed.csv").read_text() == "id,p\n007,0.1875000\n010,0.7500000\n"
    blend_files(["b.csv", "a.csv"], out="free.csv")
    assert Path("free.csv").read_text() == "id,p\n010,0.75\n007,0.1875\n"
    Path("c.csv").write_text("id,p\n1,0.5\n2,0.5\n")  # a sample submission says nothing
    blend_files(["c.csv", "c.csv"], weights=[1, 2], out="sample.csv")
    assert pl.read_csv("sample.csv")["p"].to_list() == [0.5, 0.5]


def test_integers_first() -> None:
    """A column that begins with thousands of whole numbers may go on with fractions."""
    Path("a.csv").write_text(
        "id,p\n" + "".join(f"{i},{0 if i < 5000 else 0.5}\n" for i in range(5010))
    )
    assert blend_files(["a.csv", "a.csv"])["p"].sum() == 5


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_predictions_of_classes(suffix: str) -> None:
    """Files of `Predictions.save` are blended, arrays in a column too, and renormalised."""
    probabilities = torch.softmax(torch.randn(3, 50, 4), 2)
    for index, part in enumerate(probabilities):
        outputs = Predictions(50)
        outputs.add(range(50), probability=part)
        outputs.save(f"{index}.{suffix}", ids=range(100, 150))
    paths = [f"{index}.{suffix}" for index in range(3)]
    found = blend_files(paths, out="blend.parquet")
    again = pl.read_parquet("blend.parquet")
    for table in (found, again):
        assert table["id"].to_list() == list(range(100, 150))
        assert table["probability"].to_numpy().dtype == np.float32
        np.testing.assert_allclose(
            table["probability"].to_numpy(), probabilities.mean(0), rtol=1e-6
        )
    blended = blend_files(paths, "geometric", renormalise=True)["probability"].to_numpy()
    expected = stats.gmean(probabilities.double().numpy(), axis=0)
    np.testing.assert_allclose(blended, expected / expected.sum(1, keepdims=True), rtol=1e-5)


def test_columns_of_classes() -> None:
    """Columns of class probabilities are divided by their sum in each row."""
    for index in range(2):
        columns = {f"class_{c}": rng.random(200) for c in range(3)}
        pl.DataFrame({"id": IDS, **columns}).write_csv(f"{index}.csv")
    found = blend_files(["0.csv", "1.csv"], "rank", renormalise=True)
    plain = blend_files(["0.csv", "1.csv"], "rank")
    numbers, expected = (table.drop("id").to_numpy() for table in (found, plain))
    np.testing.assert_allclose(numbers, expected / expected.sum(1, keepdims=True), rtol=1e-12)
    zeros = [write(f"{name}.csv", np.zeros(200)) for name in "ab"]
    with pytest.raises(ValueError, match=f"the row of id {IDS[0]} adds up to 0"):
        blend_files(zeros, renormalise=True)


def test_a_negative_sum() -> None:
    """Numbers that add up to less than 0 cannot be renormalised, and the error has their sum."""
    paths = [write(f"{name}.csv", np.full(200, -1.5)) for name in "ab"]
    with pytest.raises(ValueError, match=rf"the row of id {IDS[0]} adds up to -1\.5"):
        blend_files(paths, renormalise=True)


def test_votes_of_words() -> None:
    """Labels that are words are voted on."""
    for index, words in enumerate((["cat", "dog"], ["cat", "cat"], ["eel", "cat"])):
        pl.DataFrame({"id": [1, 2], "label": words}).write_csv(f"{index}.csv")
    found = blend_files(["0.csv", "1.csv", "2.csv"], "vote", out="blend.csv")
    assert found["label"].to_list() == ["cat", "cat"]
    assert Path("blend.csv").read_text() == "id,label\n1,cat\n2,cat\n"


@pytest.mark.parametrize("other", ["1.0", " 1"])
def test_labels_in_two_spellings(other: str) -> None:
    """One label that files write in two ways does not lose its votes: it is named."""
    for index, label in enumerate(["1", other, "0"]):
        Path(f"{index}.csv").write_text(f"id,y\n7,{label}\n")
    named = rf"1\.csv, column 'y', has the label '{other}', and 0\.csv, column 'y', has '1': write"
    with pytest.raises(ValueError, match=named):
        blend_files(["0.csv", "1.csv", "2.csv"], "vote")


def test_labels_stay_what_they_are() -> None:
    """Labels that look like numbers keep their zeros; other files' are read as the first's."""
    Path("a.csv").write_text("id,label\n1,01\n2,True\n")
    Path("b.csv").write_text("id,label\n2,x\n1,01\n")
    blend_files(["a.csv", "b.csv"], "vote", weights=[2, 1], out="blend.csv")
    assert Path("blend.csv").read_text() == "id,label\n1,01\n2,True\n"
    numbers = write("c.parquet", [3, 4], ids=["1", "2"])
    words = write("d.csv", [3, 5], ids=["1", "2"])
    assert blend_files([numbers, words], "vote", weights=[1, 2])["target"].to_list() == [3, 5]
    with pytest.raises(ValueError, match=r"e.csv cannot be read: .*x"):
        blend_files([numbers, write("e.csv", ["3", "x"], ids=["1", "2"])], "vote")


def test_float32_stays() -> None:
    """Parquet of float32 is blended to float32, as arrays are."""
    scores = SCORES.astype(np.float32)
    paths = [write(f"{index}.parquet", scores[index]) for index in range(3)]
    for method, function in (("mean", mean), ("rank", rank_average)):
        found = blend_files(paths, method)["target"].to_numpy()  # type: ignore[arg-type]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, function(scores))


def test_memory_is_the_columns() -> None:
    """Files in any order take the memory of their columns and little more."""
    rows = 500_000
    ids = np.char.add("row_", np.arange(rows).astype(str))
    for index in range(4):
        order = np.random.default_rng(index).permutation(rows)
        table = pl.DataFrame({"id": ids[order], "target": order / rows})
        table.write_csv(f"{index}.csv", float_precision=6)
        table[:1].write_csv("small.csv")
    script = """
from pathlib import Path
from batteries.blend import blend_files
def peak():  # as the system counts it
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
blend_files(["small.csv", "small.csv"], out="blend.csv")
before = peak()
blend_files([f"{index}.csv" for index in range(4)], out="blend.csv")
print(peak() - before)
"""
    result = warm.run(
        [sys.executable, "-c", script],
        env={**os.environ, "POLARS_MAX_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(result.stdout) < 15 + 12 + 100  # the columns, the first file's ids


def test_an_index_of_pandas() -> None:
    """The index that pandas writes by default is neither taken for the ids nor blended."""
    for name, ids in (("a.csv", (7, 9)), ("b.csv", (9, 7))):
        lines = [f"{row},{own},0.{own}" for row, own in enumerate(ids)]
        Path(name).write_text("\n".join([",id,target", *lines]))
    with pytest.raises(ValueError, match=r"a\.csv has a column without a name, as pandas writes"):
        blend_files(["a.csv", "b.csv"])
    blend = blend_files(["a.csv", "b.csv"], id_column="id", columns=["target"])
    assert blend["target"].to_list() == pytest.approx([0.7, 0.9])


def test_a_column_twice() -> None:
    """A CSV file with a column twice is named; neither of the two is blended."""
    Path("a.csv").write_text("id,p,p\n1,0.5,0.25\n")
    Path("b.csv").write_text("id,p\n1,0.5\n")
    with pytest.raises(ValueError, match=r"a\.csv has the columns p more than once"):
        blend_files(["a.csv", "a.csv"])
    with pytest.raises(ValueError, match=r"a\.csv has the columns p more than once"):
        blend_files(["b.csv", "a.csv"])


@pytest.mark.parametrize("largest", [30, 5000, 2**64 - 1])
def test_the_order_of_hashes(largest: int) -> None:
    """Hashes are ordered also where they are alike in their first bits, or the same."""
    hashes = np.random.default_rng(0).integers(0, largest, 3000, dtype=np.uint64)
    order, ordered = in_order(hashes)
    np.testing.assert_array_equal(ordered, np.sort(hashes))
    np.testing.assert_array_equal(hashes[order], ordered)
    assert sorted(order) == list(range(3000))


# ---------------------------------------------------------------- targets, names, submissions


@pytest.mark.parametrize("kind", ["parquet", "npy"])
def test_out_of_fold_files_keep_their_target(kind: str) -> None:
    """The target beside predictions is not blended, unless it is asked for; in a CSV it is."""
    truth = np.arange(200.0)
    for index in range(2):
        outputs = Predictions(200)
        outputs.add(range(200), probability=SCORES[index], target=truth)
        outputs.save(f"{index}.{kind}", ids=IDS)
    paths = [f"{index}.{kind}" for index in range(2)]
    found = blend_files(paths, "geometric")
    np.testing.assert_allclose(found["probability"], stats.gmean(SCORES[:2]))
    assert found["target"].to_list() == truth.tolist()
    asked = blend_files(paths, "rank", columns=["target"])
    np.testing.assert_allclose(asked["target"], (truth + 1) / 200)
    csv = [write(f"{i}.csv", SCORES[i], other=SCORES[i]) for i in range(2)]
    np.testing.assert_allclose(blend_files(csv)["target"], SCORES[:2].mean(0))


def test_files_by_name() -> None:
    """Files in a mapping are weighted by their names."""
    paths = {name: write(f"{name}.csv", SCORES[at]) for at, name in enumerate("ab")}
    expected = blend_files(paths.values(), weights=[3, 1])
    assert blend_files(paths, weights={"b": 1, "a": 3}).equals(expected)
    assert blend_files(paths.values(), weights={"b.csv": 1, "a.csv": 3}).equals(expected)
    with pytest.raises(ValueError, match="the weights are of a, c, but the models are a, b"):
        blend_files(paths, weights={"a": 1, "c": 2})


FAULTS: dict[str, tuple[str, str]] = {
    "columns": ("id,p\n1,0.5\n2,0.5\n3,0.5\n", r"the columns are \['id', 'p'\]; expected \['id'"),
    "rows": ("id,target\n1,0.5\n3,0.5\n", "1 ids are missing, such as 2"),
    "ids": ("id,target\n1,0.5\n2,0.5\n3,0.5\n4,0\n", "1 ids are not in the sample, such as 4"),
    "twice": ("id,target\n1,0.5\n2,0.5\n3,0.5\n3,0\n", "the id 3 is there more than once"),
    "order": ("id,target\n1,0.5\n3,0.5\n2,0.1\n", r"in another order, first in row 1 \(3 for 2\)"),
    "missing": ("id,target\n1,0.5\n2,\n3,nan\n", "column 'target': 2 missing, first in row 1"),
    "texts": ("id,target\n1,0.5\n2,cat\n3,0\n", r"1 no numbers, first in row 1 \(cat\)"),
    "infinite": ("id,target\n1,0.5\n2,inf\n3,0\n", r"1 infinite, first in row 1 \(inf\)"),
    "range": ("id,target\n1,0.5\n2,1.5\n3,0\n", r"1 not from 0 to 1, first in row 1 \(1.5\)"),
    "the sample": ("id,target\n1,0\n2,0\n3,0\n", "all predictions are equal to those of the samp"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_submissions(fault: str) -> None:
    """What a competition would refuse is told, with the row; what it takes is not."""
    Path("sample.csv").write_text("id,target\n1,0\n2,0\n3,0\n")
    text, told = FAULTS[fault]
    Path("mine.csv").write_text(text)
    ranges = {"target": (0.0, 1.0)}
    with pytest.raises(ValueError, match=rf"^mine.csv is not as sample.csv:\n- (?s:.*){told}"):
        check_submission("mine.csv", "sample.csv", ranges=ranges if fault != "columns" else None)
    Path("mine.csv").write_text("id,target\n1,0.5\n2,1e-3\n3,1\n")
    assert check_submission("mine.csv", "sample.csv", ranges=ranges) == 3
    pl.read_csv("mine.csv").write_parquet("mine.parquet")
    assert check_submission("mine.parquet", "sample.csv") == 3


def test_submissions_of_classes() -> None:
    """Where the sample has several whole numbers, fractions are told, and texts are texts."""
    Path("sample.csv").write_text("id,label,word\n007,1,a\n008,2,b\n")
    Path("mine.csv").write_text("id,label,word\n007,1.5,b\n008,2,\n")
    with pytest.raises(
        ValueError, match=r"no whole numbers, .* \(1.5\)\n- column 'word': 1 missing"
    ):
        check_submission("mine.csv", "sample.csv")
    with pytest.raises(ValueError, match=r"sample.csv has no column 'row'; it has id, label, word"):
        check_submission("mine.csv", "sample.csv", id_column="row")


def test_submissions_of_masks() -> None:
    """Values may be missing where the sample's are; all missing, they show no kind."""
    Path("mine.csv").write_text("id,rle\n7,1 3\n9,\n")
    for sample in ("id,rle\n7,1 1\n9,\n", "id,rle\n7,\n9,\n"):
        Path("sample.csv").write_text(sample)
        assert check_submission("mine.csv", "sample.csv") == 2
    Path("sample.csv").write_text("id,rle\n7,1 1\n9,1 1\n")
    with pytest.raises(ValueError, match="column 'rle': 1 missing, first in row 1"):
        check_submission("mine.csv", "sample.csv")


def test_the_sample_in_other_digits() -> None:
    """Predictions that are the sample's are noticed however they are written."""
    Path("sample.csv").write_text("id,target\n7,0\n9,0.5\n")
    Path("mine.csv").write_text("id,target\n7,0.0\n9,5e-1\n")
    with pytest.raises(ValueError, match="all predictions are equal to those of the sample"):
        check_submission("mine.csv", "sample.csv")
