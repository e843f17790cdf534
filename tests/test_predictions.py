"""Predictions: each sample once, in the order of the dataset, on any number of processes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from sklearn.datasets import load_digits
from sweeps import sweep
from torch import Tensor, nn
from torch.utils.data import Dataset, DistributedSampler, TensorDataset

from batteries import Predictions, distributed, predictions
from batteries.data import DataLoader
from batteries.distributed import rank
from batteries.predictions import _rows

KINDS = {
    "float": torch.rand(23, dtype=torch.float64),
    "half": torch.rand(23, 2, 3).half(),
    "brain": torch.rand(23, 1).bfloat16(),
    "flag": torch.rand(23, 4) > 0.5,
    "long": torch.arange(23) * 2**40,
    "complex": torch.randn(23, dtype=torch.complex64),
    "empty": torch.empty(23, 0),
    "numpy": np.arange(23, dtype=np.uint8),
    "ragged": [torch.arange(i) for i in range(23)],
    "text": [f"sample {i}" for i in range(23)],
}


def jagged(*parts: Tensor) -> Tensor:
    nested: Tensor = torch.nested.nested_tensor(list(parts), layout=torch.jagged)
    return nested


def rows(value: Any, indices: list[int]) -> Any:
    return [value[i] for i in indices] if isinstance(value, list) else value[indices]


def gather_kinds(kinds: dict[str, Any], parts: list[list[int]]) -> list[tuple[Any, ...]]:
    outputs = Predictions(23)
    for indices in np.array_split(parts[distributed.rank()], 3):
        if len(indices):
            batch = {name: rows(value, indices.tolist()) for name, value in kinds.items()}
            outputs.add(indices.tolist(), **batch)
    gathered = [outputs.gather(), outputs.gather(dst=0)]  # with the header
    _rows._SMALL, _rows._PIECE, _rows._OBJECTS = -1, 64, 4  # and in pieces
    return [*gathered, outputs.gather(), outputs.gather(dst=1)]


PARTS = {
    "strided": [list(range(0, 23, 2)), list(range(1, 23, 2))],
    "random": [[22, 3, 0, 7, 9, 1], [i for i in range(23)[::-1] if i not in (22, 3, 0, 7, 9, 1)]],
    "one has none": [[], list(range(23))],
}


@pytest.mark.parametrize("name", PARTS)
def test_any_kind(name: str) -> None:
    """Arrays of any dtype and shape, and objects, arrive whole, where they are asked for."""
    on_zero, on_one = run_ranks(gather_kinds, KINDS, PARTS[name])
    assert on_zero[3] == on_one[1] == (None,) * len(KINDS)
    for gathered in (*on_zero[:3], on_one[0], *on_one[2:]):
        for value, expected in zip(gathered, KINDS.values(), strict=True):
            if isinstance(expected, list):
                assert all(np.array_equal(a, b) for a, b in zip(value, expected, strict=True))
            else:
                torch.testing.assert_close(value, torch.as_tensor(expected), rtol=0, atol=0)


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.from_numpy(data.data[:301]).float() / 16, torch.from_numpy(data.target[:301])


def evaluate(batch_size: int, shuffle: bool) -> tuple[Any, ...]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double()
    images, labels = digits()
    dataset = TensorDataset(images.double(), labels)
    loader = DataLoader(dataset, batch_size, shuffle=shuffle, seed=3)
    outputs = Predictions(len(dataset), duplicates="drop" if shuffle else "raise")
    with torch.inference_mode():
        for x, y in loader:
            # One by one: a kernel may sum otherwise for another size of batch.
            logits = torch.stack([model(one) for one in x])
            outputs.add(loader.indices, probability=logits.softmax(1), target=y)
    return outputs.gather()


@pytest.mark.parametrize("shuffle", [sweep(False), True])
def test_the_same_on_any_number_of_processes(shuffle: bool) -> None:
    """Worlds of 1 to 4 give the same bits, and the metrics of one process."""
    from sklearn.metrics import accuracy_score, f1_score, log_loss  # here: ranks need neither
    from torchmetrics.classification import MulticlassAUROC

    _, labels = digits()
    (expected,) = run_ranks(evaluate, 301, False, world_size=1)
    probability, target = expected
    assert target.equal(labels)
    auc = MulticlassAUROC(10)(probability, labels)
    for world_size in (1, 2, 3, 4):
        for found in run_ranks(evaluate, 32, shuffle, world_size=world_size):
            assert found[0].equal(probability)
            assert found[1].equal(target)
            guesses = found[0].argmax(1)
            assert accuracy_score(found[1], guesses) == accuracy_score(
                labels, probability.argmax(1)
            )
            assert f1_score(found[1], guesses, average="macro") == f1_score(
                labels, probability.argmax(1), average="macro"
            )
            assert log_loss(found[1], found[0]) == log_loss(labels, probability)
            assert MulticlassAUROC(10)(*found) == auc


class Numbers(Dataset[int]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        return index


def with_torch_sampler(duplicates: Any, noise: float) -> Any:
    sampler: DistributedSampler[int] = DistributedSampler(Numbers(), shuffle=False)
    outputs = Predictions(10, duplicates)
    for index in sampler:
        outputs.add([index], value=torch.tensor([index + noise * distributed.rank()]))
    return outputs.gather()[0]


def test_padded_duplicates() -> None:
    """Samples that torch's sampler repeats are an error, or dropped if they agree."""
    for error in run_ranks(with_torch_sampler, "raise", 0.0, world_size=4):
        assert isinstance(error, ValueError)
        assert "2 (0, 1) came more than once: with torch's DistributedSampler" in str(error)
    for value in run_ranks(with_torch_sampler, "drop", 1e-9, world_size=4):
        assert value.tolist() == pytest.approx(list(range(10)))
    for error in run_ranks(with_torch_sampler, "drop", 0.1, world_size=4):
        assert "2 (0, 1) came more than once with different values of value" in str(error)


@pytest.mark.parametrize("indices", [[0, 1, 1, 2], [2, 0, 2, 2, 1]])
def test_duplicates_in_one_batch(indices: list[int]) -> None:
    """A sample that comes twice in one batch is noticed, and its first row counts."""
    outputs = Predictions(3)
    outputs.add(indices, value=torch.zeros(len(indices)))
    with pytest.raises(ValueError, match="came more than once"):
        outputs.gather()
    outputs = Predictions(3, duplicates="drop")
    outputs.add(indices, value=torch.tensor(indices), name=[str(i) for i in indices])
    assert [list(column) for column in outputs.gather()] == [[0, 1, 2], ["0", "1", "2"]]


def repeat_all(duplicates: Any) -> Any:
    outputs = Predictions(2, duplicates)
    outputs.add([0, 1], value=torch.tensor([4, 5]))
    return outputs.gather()[0]


def test_a_rank_that_repeats_all() -> None:
    """A rank may have only samples that came before, as with more ranks than samples."""
    for value in run_ranks(repeat_all, "drop"):
        assert value.tolist() == [4, 5]
    for error in run_ranks(repeat_all, "raise"):
        assert "2 (0, 1) came more than once" in str(error)


def lose_some(dst: int | None) -> None:
    outputs = Predictions(1000)
    outputs.add(range(distributed.rank(), 900, 2), value=torch.zeros(450))
    outputs.gather(dst)


@pytest.mark.parametrize("dst", [None, 0])
def test_missing_samples(dst: int | None) -> None:
    """Missing samples are an error on every rank, with how many and the first of them."""
    for error in run_ranks(lose_some, dst):
        told = "100 (900, 901, 902, 903, 904, ...) of 1000 samples are missing: add each sample"
        assert str(error) == f"{told} on one of the ranks"


def box(number: int, change: float) -> dict[str, Any]:
    """Outputs of a detector: their number depends on the sample."""
    boxes = torch.arange(4.0 * number).reshape(number, 4)
    return {"boxes": boxes + change, "names": ("cat", "dog"), "score": 0.5 + change}


def gather_boxes(change: float) -> Any:
    outputs = Predictions(2, duplicates="drop")
    change *= rank()
    outputs.add([0, 1], found=[box(2, change), box(3, 0)], map=[np.ones(2) + change, np.array("a")])
    try:
        return outputs.gather()
    except ValueError as error:
        return str(error)


def test_equal_objects_agree() -> None:
    """A sample that came twice may have tensors, arrays and dicts; floats agree as rows do."""
    for found, _ in run_ranks(gather_boxes, 1e-9):
        assert torch.equal(found[0]["boxes"], box(2, 0)["boxes"])
    for error in run_ranks(gather_boxes, 0.1):
        assert "1 (0) came more than once with different values of found; 1 (0)" in error


def add_different_arrays() -> None:
    outputs = Predictions(2)
    outputs.add([distributed.rank()], value=torch.zeros(1, distributed.rank() + 1))
    outputs.gather()


def test_ranks_that_differ() -> None:
    """Ranks that added different arrays are told so, all of them."""
    for error in run_ranks(add_different_arrays):
        assert "the ranks have different predictions: rank " in str(error)
        assert "rank 1 has value: float32 (2,)" in str(error)
        assert "rank 0 has value: float32 (1,)" in str(error)


def raise_in_the_middle() -> None:
    outputs = Predictions(4)
    for index in range(distributed.rank(), 4, 2):
        if index == 3:
            raise ArithmeticError("no number")
        outputs.add([index], value=torch.zeros(1))
    outputs.gather()


def test_a_rank_that_raises() -> None:
    """When one rank raises before the end, the others get its error and not a timeout."""
    errors = run_ranks(raise_in_the_middle)
    assert "rank 1 has left: ArithmeticError: no number" in str(errors[0])


@pytest.mark.parametrize(
    ("bad", "kind", "text"),
    [
        (([0, 1], {"x": torch.zeros(3)}), ValueError, "x has 3 rows for 2 indices"),
        (([0], {"x": torch.zeros(1, 3)}), ValueError, r"x: float32 \(3,\), the ones before x: fl"),
        (([0], {"x": torch.zeros(1, 2).int()}), ValueError, r"a batch has x: int32 \(2,\)"),
        (([0], {"y": torch.zeros(1, 2)}), ValueError, "a batch has y: float32"),
        (([9], {"x": torch.zeros(1, 2)}), IndexError, "index 9 is outside of a dataset of 5 sam"),
        (([-1], {"x": torch.zeros(1, 2)}), IndexError, "index -1 is outside"),
        (([0.5], {"x": torch.zeros(1, 2)}), ValueError, "expected integers"),
        (([0], {"x": torch.zeros(())}), ValueError, "x is one number; expected a row for each"),
        (([0], {"x": 1.0}), ValueError, "x is a float; expected a row for each index"),
        (([0], {"x": np.array(["a"])}), ValueError, "x is an array of <U1: pass a list"),
        (
            ([0], {"x": torch.ones(1, 2).to_sparse()}),
            ValueError,
            r"sparse .*: pass x\.to_dense\(\)",
        ),
        (([0], {"x": jagged(torch.ones(2))}), ValueError, r"x is a jagged tensor: pass a list of"),
        (([0], {"x": torch.ones(1, device="meta")}), ValueError, "x is on the meta device: pass"),
    ],
)
def test_bad_batches(bad: tuple[Any, dict[str, Any]], kind: Any, text: str) -> None:
    """A batch that does not fit is an error that says why, and nothing is added."""
    outputs = Predictions(5)
    outputs.add([1], x=torch.zeros(1, 2))
    with pytest.raises(kind, match=text):
        outputs.add(bad[0], **bad[1])
    outputs.add([0, 2, 3, 4], x=torch.ones(4, 2))
    assert outputs.gather()[0].sum() == 8


def test_memory_is_the_callers() -> None:
    """What is added is copied: the program may use its buffer again."""
    outputs, buffer = Predictions(2), torch.zeros(1)
    for index in range(2):
        buffer.fill_(index)
        outputs.add([index], value=buffer)
    assert outputs.gather()[0].tolist() == [0, 1]


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["valid.parquet", "valid.npy"])
def test_files(name: str) -> None:
    """What is saved is loaded: ids, dtypes and shapes; 16-bit floats become 32-bit ones."""
    outputs = Predictions(3)
    kept = {
        "probability": torch.rand(3, 2, 2),
        "target": torch.arange(3),
        "flag": torch.ones(3) > 0,
    }
    outputs.add(range(3), **kept, half=torch.tensor([0.1, 0.2, 0.3]).bfloat16())
    outputs.save(name, ids=["c", "a", "b"])
    found = predictions.load(name)
    assert list(found) == ["id", "probability", "target", "flag", "half"]
    assert found["id"].tolist() == ["c", "a", "b"]
    for key, value in kept.items():
        assert found[key].dtype == value.numpy().dtype
        assert np.array_equal(found[key], value.numpy())
    assert found["half"].dtype == np.float32
    assert sorted(path.name for path in Path().iterdir()) == [name]


def test_names_of_pandas_in_files() -> None:
    """Ids may be a column of pandas, which has texts as objects, also in .npy files."""
    pd: Any = pytest.importorskip("pandas")
    outputs = Predictions(2)
    outputs.add(range(2), x=torch.zeros(2))
    for name in ("a.npy", "a.parquet"):
        outputs.save(name, ids=pd.Series(["b", "a"], dtype=object))
        assert predictions.load(name)["id"].tolist() == ["b", "a"]


def test_objects_in_files() -> None:
    """Texts and ragged numbers are saved as .parquet, and refused as .npy."""
    outputs = Predictions(2)
    outputs.add(range(2), boxes=[torch.ones(1), torch.zeros(3)], name=["a", "b"])
    outputs.save("a.parquet")
    found = predictions.load("a.parquet")
    assert [list(box) for box in found["boxes"]] == [[1], [0, 0, 0]]
    assert found["name"].tolist() == ["a", "b"]
    with pytest.raises(TypeError, match=r"boxes is a list of objects, which \.npy cannot hold"):
        outputs.save("a.npy")


@pytest.mark.parametrize("name", ["a.npy", "a.parquet"])
def test_damaged_files(name: str) -> None:
    """A file that was cut, or whose description was changed, is an error that names it."""
    outputs, path = Predictions(9), Path(name)
    outputs.add(range(9), value=torch.rand(9, 3))
    outputs.save(name)
    data = path.read_bytes()
    path.unlink()  # it may be mapped
    changed = [data[:at] + b"(" + data[at + 1 :] for at in range(0, 128, 3)]
    for number, damaged in enumerate([*(data[:size] for size in range(0, 400, 23)), *changed]):
        copy = Path(f"{number}-{name}")
        copy.write_bytes(damaged)
        try:
            predictions.load(copy)  # what is changed may be a value
        except ValueError as error:
            assert copy.name in str(error)  # noqa: PT017
    with pytest.raises(FileNotFoundError):
        predictions.load(name)


def test_columns_that_a_file_cannot_hold() -> None:
    """Objects of mixed kinds, and a list called as the ids are, are errors that name the column."""
    outputs = Predictions(2)
    outputs.add(range(2), id=["a", "b"])
    with pytest.raises(ValueError, match="an array is called 'id', which is the column of ids"):
        outputs.save("a.parquet")
    for mixed in ([1, "a"], [[torch.zeros(1)], [torch.zeros(2)]]):
        outputs = Predictions(2)
        outputs.add(range(2), boxes=mixed)
        with pytest.raises(TypeError, match=r"boxes has objects that a \.parquet file cannot hold"):
            outputs.save("a.parquet")


@pytest.mark.parametrize(
    "given", [[{"x": 1}, {"y": 2}], [[1], [2.5]], [{"a": [{"x": 1}]}, {"a": [{"x": 1, "y": 2}]}]]
)
def test_objects_of_different_forms(given: Any) -> None:
    """What polars would cut or leave out is an error that names the column."""
    outputs = Predictions(2)
    outputs.add(range(2), boxes=given)
    with pytest.raises(TypeError, match=r"boxes has objects that a \.parquet file cannot hold"):
        outputs.save("a.parquet")


def test_dicts_in_files() -> None:
    """Dicts are loaded with their keys."""
    outputs = Predictions(2)
    boxes = [{"label": 1, "at": [0.5, 1.0]}, {"label": 2, "at": []}]
    outputs.add(range(2), boxes=boxes)
    outputs.save("a.parquet")
    assert predictions.load("a.parquet")["boxes"].tolist() == boxes


def save_on_all(path: str) -> None:
    outputs = Predictions(4)
    outputs.add([3 - distributed.rank(), distributed.rank()], value=torch.tensor([1.0, 0.0]))
    outputs.save(path, ids=range(10, 14))


def test_saving_on_several_ranks(tmp_path: Path) -> None:
    """Rank 0 writes for all, and an error reaches all."""
    assert run_ranks(save_on_all, str(tmp_path / "a.parquet")) == [None, None]
    found = predictions.load(tmp_path / "a.parquet")
    assert (found["id"].tolist(), found["value"].tolist()) == ([10, 11, 12, 13], [0, 0, 1, 1])
    for error in run_ranks(save_on_all, str(tmp_path / "a.csv")):
        assert "predictions are saved as .parquet or .npy, not as a.csv" in str(error)


def test_bad_files() -> None:
    """Ids of another length and files of something else are errors."""
    outputs = Predictions(2)
    outputs.add(range(2), value=torch.zeros(2))
    with pytest.raises(ValueError, match="there are 3 ids for 2 samples"):
        outputs.save("a.parquet", ids=range(3))
    np.save("b.npy", np.zeros(3))
    with pytest.raises(
        ValueError, match=r"b\.npy has no \"id\" column, .*; it has one plain array"
    ):
        predictions.load("b.npy")
    with pytest.raises(ValueError, match="duplicates is 'keep'; expected 'raise' or 'drop'"):
        Predictions(2, "keep")  # type: ignore[arg-type]


def gather_to_oneself() -> None:
    outputs = Predictions(2)
    outputs.add([distributed.rank()], value=torch.zeros(1))
    outputs.gather(dst=distributed.rank())


def test_different_destinations() -> None:
    """Ranks that gather to different ranks, or to one that is not there, are told so."""
    for error in run_ranks(gather_to_oneself):
        assert "the ranks have different predictions: rank " in str(error)
    with pytest.raises(ValueError, match="dst is 1; expected a rank, 0 to 0"):
        Predictions(0).gather(dst=1)


def test_nothing_to_add() -> None:
    """Indices without predictions are an error: another's would stand in their place."""
    with pytest.raises(ValueError, match="add got indices but no predictions"):
        Predictions(2).add([0])


def test_objects_are_kept_as_they_were() -> None:
    """Objects are copied when they are added, of a view the view alone; lambdas are refused."""
    outputs, big = Predictions(256), torch.ones(256, 1000)
    outputs.add(range(256), boxes=[row[:3] for row in big])
    assert sum(map(len, outputs._rows["boxes"][0])) < 256 * 1000
    big.zero_()
    assert torch.stack(outputs.gather()[0]).eq(1).all()
    with pytest.raises((AttributeError, pickle.PicklingError)):
        Predictions(1).add([0], call=[lambda: 1])


def test_the_order_of_bytes() -> None:
    """Numbers of a file of another machine, with the other order of bytes, keep their values."""
    for dtype in (">f4", "<f4", ">i8", "<i8", ">c8"):
        outputs = Predictions(3)
        outputs.add(range(3), value=np.arange(3).astype(dtype))
        assert outputs.gather()[0].tolist() == [0, 1, 2]


def test_numpy_views() -> None:
    """Arrays that run backwards or cannot be written are taken as their values."""
    outputs, fixed = Predictions(3), np.arange(3.0)
    fixed.flags.writeable = False
    outputs.add(range(3), back=np.arange(3.0)[::-1], fixed=fixed)
    assert [column.tolist() for column in outputs.gather()] == [[2, 1, 0], [0, 1, 2]]


def test_arrays_by_name() -> None:
    """What is gathered has the names that were added, unpacks, and can be pickled."""
    outputs = Predictions(2)
    added: dict[str, Any] = {"valid/loss": torch.tensor([0.5, 0.25]), "count": ["a", "b"]}
    outputs.add([1, 0], **added)
    arrays = pickle.loads(pickle.dumps(outputs.gather()))
    losses, names = arrays
    assert (losses.tolist(), names, arrays.count) == ([0.25, 0.5], ["b", "a"], ["b", "a"])
    assert getattr(arrays, "valid/loss") is losses
    with pytest.raises(AttributeError, match="there is no 'score' among valid/loss, count"):
        arrays.score  # noqa: B018
