"""Numbers, arrays and paths of users mean the same in all rooms, whatever their types are."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from batteries import (
    EMA,
    AverageMeter,
    CheckpointManager,
    EarlyStopping,
    JsonLinesLogger,
    Loggers,
    Predictions,
    TensorBoardLogger,
    accumulate,
    average_checkpoints,
    blend,
    load_checkpoint,
    make_checkpoint,
    predictions,
    save_checkpoint,
    seed_all,
    set_backends,
    start_run,
)
from batteries.averaging import best_checkpoints, greedy_soup, save_average
from batteries.blend import find_threshold, find_weights
from batteries.data import DataLoader, Shuffle
from batteries.distributed import PerRank, setup
from batteries.scoreboard import paired_bootstrap, read_run, read_runs, record_scores
from batteries.splits import Folds, OutOfFold, check_folds, look, make_folds
from batteries.training import (
    StepPolicy,
    Throughput,
    find_batch_size,
    log_checksums,
    lr_range_test,
    parameter_groups,
)

pd: Any = pytest.importorskip("pandas")
MODEL = nn.Linear(2, 1)
RANGE: Any = range(3)
SGD = torch.optim.SGD(MODEL.parameters(), lr=0.1)
TARGET = [0, 1] * 10
SCORES = [0.2, 0.7, 0.4, 0.9] * 5
FRAME = pd.DataFrame({"a": range(20)})


def distance(target: Any, prediction: Any) -> float:
    return float(np.abs(target - prediction).mean())


def counted(items: Any) -> None:
    with Throughput().count_flops(items):
        MODEL(torch.ones(1, 2))


def soup_of(result: Any) -> Any:
    save_checkpoint({"model_state_dict": {"w": torch.ones(1)}}, "a.pth")
    return greedy_soup(["a.pth"], lambda _: result, metric_minimization=False)


# ---------------------------------------------------------------- numbers

NUMBERS: dict[str, Callable[[Any], Any]] = {
    "EarlyStopping": lambda value: EarlyStopping(metric_minimization=True).step(value),
    "min_delta": lambda value: EarlyStopping(metric_minimization=True, min_delta=value),
    "process": lambda value: CheckpointManager("logs").process(
        value, 1, make_checkpoint("a", 1, MODEL)
    ),
    "log_metrics": lambda value: JsonLinesLogger("lines").log_metrics({"a": value}, 1),
    "greedy_soup": lambda value: soup_of(value),
    "decay": lambda value: EMA(MODEL, value),
    "metric": lambda value: find_weights(
        {"a": SCORES}, TARGET, lambda *_: value, metric_minimization=True, rounds=1
    ),
    "power": lambda value: blend.power_average([[0.5]], power=value),
    "spike": lambda value: StepPolicy(spike=value),
    "max_norm": lambda value: next(iter(accumulate([torch.ones(1)], MODEL)))[1].clip([], value),
    "weight_decay": lambda value: parameter_groups(MODEL, value),
    "lr": lambda value: parameter_groups(MODEL, 0.1, lr=value, layers=[MODEL], layer_decay=1),
    "layer_decay": lambda value: parameter_groups(
        MODEL, 0.1, lr=0.1, layers=[MODEL], layer_decay=1 if value is None else value
    ),
    "norm": lambda value: StepPolicy().accepts(value),
    "loss": lambda value: StepPolicy().accepts(1.0, value),
    "items": lambda value: counted(value),
    "peak_flops": lambda value: Throughput(peak_flops=value),
    "lowest": lambda value: lr_range_test(lambda: 1.0, MODEL, SGD, steps=2, lowest=value),
    "highest": lambda value: lr_range_test(lambda: 1.0, MODEL, SGD, steps=2, highest=value),
    "diverged": lambda value: lr_range_test(lambda: 1.0, MODEL, SGD, steps=2, diverged=value),
}
OPTIONAL = {"spike", "lr", "layer_decay", "loss", "peak_flops"}


@pytest.mark.parametrize("place", NUMBERS)
def test_one_number(place: str) -> None:
    """A number may be of Python, numpy or torch; all else is named, with what was expected."""
    odd = [None] if place not in OPTIONAL else []
    for value in (*odd, "0.5", 1j, [1], object(), 10**400, torch.zeros(2), np.zeros((1, 2))):
        with pytest.raises(TypeError, match=r"is .*; expected one number"):
            NUMBERS[place](value)
    good = 1.5 if place in ("spike", "diverged") else 0.5
    for value in (good, np.float32(good), torch.tensor([good]), np.array([good])):
        NUMBERS[place](value)


WHOLE: dict[str, Callable[[Any], Any]] = {
    "patience": lambda n: EarlyStopping(n, metric_minimization=True),
    "save_n_best": lambda n: CheckpointManager("logs", save_n_best=n),
    "keep_every": lambda n: CheckpointManager("logs", keep_every=n),
    "length": lambda n: Predictions(n),
    "update_every": lambda n: EMA(MODEL, update_every=n),
    "update_after": lambda n: EMA(MODEL, update_after=n),
    "start": lambda n: find_batch_size(lambda _: None, n),
    "history": lambda n: StepPolicy(history=n),
    "at_most": lambda n: StepPolicy(at_most=n),
    "data": lambda n: make_folds(n, 2),
    "n_folds": lambda n: make_folds(9, n),
    "repeats": lambda n: make_folds(9, 3, repeats=n),
    "rounds": lambda n: find_weights({"a": SCORES}, TARGET, "auc", rounds=n),
    "folds": lambda n: find_weights({"a": SCORES}, TARGET, "auc", folds=n),
    "candidates": lambda n: find_threshold(SCORES, TARGET, "accuracy", candidates=n),
    "step": lambda n: JsonLinesLogger("lines").log_metrics({"a": 1}, n),
    "(step)": lambda n: log_checksums("logs", n, MODEL),
    "rank": lambda n: seed_all(1, rank=n),
    "number": lambda n: best_checkpoints("logs", n),
    "seed": lambda n: seed_all(n),
    "n": lambda n: DataLoader(RANGE).check(n),
    "epoch": lambda n: DataLoader(RANGE).load_state_dict(
        {**DataLoader(RANGE).state_dict(), "epoch": n}
    ),
    "(length)": lambda n: Shuffle(n, (1,)),
    "a number of key": lambda n: Shuffle(3, (n,)),
}


@pytest.mark.parametrize("place", WHOLE)
def test_whole_numbers(place: str) -> None:
    """A fraction or a text is no whole number anywhere, and numpy's and torch's are."""
    for value in (2.5, "2", math.nan, True):
        with pytest.raises(TypeError, match=rf"{place} is .*; expected a whole number"):
            WHOLE[place](value)
    manager = CheckpointManager("logs")
    for epoch in range(1, 4):
        manager.process(0.5, epoch, make_checkpoint("a", epoch, MODEL))
    for good in (np.int64(3), torch.tensor(3)):
        WHOLE[place](good)


SEEDS: dict[str, Callable[[Any], Any]] = {
    "seed_all": lambda seed: seed_all(seed),
    "make_folds": lambda seed: make_folds(9, 3, seed=seed),
    "look": lambda seed: look(FRAME, FRAME, seed=seed).auc,
    "find_weights": lambda seed: find_weights({"a": SCORES}, TARGET, "auc", seed=seed),
}


@pytest.mark.parametrize("place", SEEDS)
def test_seeds(place: str) -> None:
    """Each room takes the seeds of the others; no seed at all would be another result each time."""
    SEEDS[place](2**64 - 1)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match=r"seed is .*; expected an integer from 0 to 2\*\*64"):
            SEEDS[place](seed)
    with pytest.raises(TypeError, match="seed is None; expected a whole number"):
        SEEDS[place](None)


def test_spans_of_time() -> None:
    """The timeout of ranks may be written like the time limit of a guard."""
    for timeout in ("10m", 5, 0.5):
        with setup(timeout=timeout):
            pass
    with pytest.raises(ValueError, match="timeout is '5 parsecs'; expected seconds, a timedelta"):
        setup(timeout="5 parsecs").__enter__()


# ---------------------------------------------------------------- nothing


def test_nothing_is_no_number() -> None:
    """What is not known is NaN or an error, and never a number that looks like a result."""
    folds = Folds(np.array([0, 0, -1]), "kfold")
    oof = OutOfFold(folds)
    oof.add(0, [1.0, 2.0])
    assert math.isnan(oof.score([1.0, 2.0, 3.0], "rmse").spread)
    same = blend.correlation([[0.1] * 3, [0.1, 0.2, 0.4]]).values
    assert np.isnan(same).tolist() == [[True, True], [True, False]]
    with pytest.raises(ValueError, match="not a finite number on these 20 rows"):
        paired_bootstrap(TARGET, SCORES, SCORES, lambda *_: math.nan)
    assert read_run("nothing").problems == ["there is no directory nothing"]
    with pytest.raises(ValueError, match="there are no checkpoints to average"):
        greedy_soup([], lambda _: 1.0, metric_minimization=True)
    with pytest.raises(ValueError, match="NaN for all of the 1 checkpoints"):
        soup_of(math.inf)


def test_rare_classes_in_samples() -> None:
    """Samples without the rare class have no AUC and are left out; the others give an interval."""

    def metric(target: Any, scores: Any) -> float:
        if target.sum() == 0:
            warnings.warn("Only one class is present in y_true", stacklevel=1)  # as scikit-learn
            return math.nan
        return distance(target, scores)

    found = paired_bootstrap([1] + [0] * 19, SCORES, SCORES[::-1], metric)
    assert np.isfinite(found.interval).all()


# ---------------------------------------------------------------- arrays


def forms(values: list[float]) -> dict[str, Any]:
    """The same numbers in types that users have."""
    return {
        "array": np.array(values),
        "strided": np.repeat(values, 2)[::2],
        "tensor": torch.tensor(values, requires_grad=True),
        "bfloat16": torch.tensor(values).bfloat16(),
        "tensors": [torch.tensor(value, requires_grad=True) for value in values],
        "generator": (value for value in values),
        "view": dict(enumerate(values)).values(),
        "column": pd.Series(values, index=range(5, 5 + len(values))),
    }


ARRAYS: dict[str, Callable[[Any], Any]] = {
    "mean": lambda values: blend.mean(values, [0.5] * 20),
    "rank_average": lambda values: blend.rank_average([values, [0.5] * 20]),
    "power_average": lambda values: blend.power_average(values, [0.5] * 20),
    "weights": lambda values: blend.mean([[0.5]] * 20, weights=values),
    "find_threshold": lambda values: find_threshold(values, TARGET, "accuracy").value,
    "paired_bootstrap": lambda values: paired_bootstrap(values, SCORES, SCORES, distance).value,
    "targets": lambda values: find_weights([SCORES], values, "rmse", folds=None).score,
    "make_folds": lambda values: make_folds(20, 2, "stratified", targets=values).assignment,
    "groups": lambda values: make_folds(20, 2, "group", groups=values).assignment,
    "check_folds": lambda values: check_folds(make_folds(20, 2), values).rows(),
    "OutOfFold": lambda values: out_of_fold(values),
}


def out_of_fold(values: Any) -> Any:
    oof = OutOfFold(Folds(np.zeros(20, dtype=int), "kfold"))
    oof.add(0, values)
    return oof.predictions


@pytest.mark.parametrize("place", ARRAYS)
def test_one_array_in_all_its_forms(place: str) -> None:
    """Tensors of any float, iterators, views and columns give what the list gives."""
    values = [0.25, 0.75, 0.5, 1.0] * 5  # exact in 16 bits
    expected = ARRAYS[place](values)
    for name, form in forms(values).items():
        assert np.all(np.asarray(ARRAYS[place](form)) == np.asarray(expected)), name


NONE_IS_DEFAULT = ("weights", "check_folds", "make_folds", "groups")


@pytest.mark.parametrize("place", ARRAYS)
def test_no_array(place: str) -> None:
    """Masked values, and what is no array, are errors: neither is used as numbers."""
    for wrong in ({0.5, 1.0}, None, object(), np.ma.array([0.5] * 20, mask=[True] + [False] * 19)):
        if wrong is None and place in NONE_IS_DEFAULT:
            continue
        with pytest.raises((TypeError, ValueError), match=r"expected an array|masked array: pass"):
            ARRAYS[place](wrong)


def test_models_that_are_out_of_fold() -> None:
    """Out-of-fold predictions are a model in every place, also as the last argument."""
    folds = Folds(np.array([0, 0, 1]), "kfold")
    first, second = OutOfFold(folds), OutOfFold(folds)
    for oof, scale in ((first, 1.0), (second, 2.0)):
        for fold, (_, valid) in enumerate(folds):
            oof.add(fold, (valid + 1) * scale)
    for function in (blend.mean, blend.power_average, blend.geometric, blend.rank_average):
        expected = function([first.predictions, second.predictions])
        assert function(first, second).tolist() == expected.tolist()
    cubes = blend.power_average(first, second, power=3)
    assert blend.power_average(first, second, 3).tolist() == cubes.tolist()


def test_models_of_pandas_in_other_orders() -> None:
    """Columns with different indexes are not blended row by row."""
    first, second = pd.Series([0.1, 0.2], index=[1, 2]), pd.Series([0.4, 0.3], index=[2, 1])
    with pytest.raises(ValueError, match="have different indexes of pandas: bring their rows"):
        blend.mean(first, second)
    assert blend.mean(first, second.loc[first.index]).tolist() == pytest.approx([0.2, 0.3])


def test_classes_in_other_orders() -> None:
    """Frames with the same columns in different orders are not blended column by column."""
    first = pd.DataFrame({"cat": [0.9, 0.2], "dog": [0.1, 0.8]})
    for other in (first[["dog", "cat"]], pl.DataFrame({"dog": [0.1, 0.8], "cat": [0.9, 0.2]})):
        with pytest.raises(ValueError, match=r"orders, \['cat', 'dog'\] and \['dog', 'cat'\]: br"):
            blend.mean(first, other)
    assert np.array_equal(blend.mean(first, first.to_numpy()), first)


def test_targets_of_pandas_in_other_orders() -> None:
    """Rows are not scored with targets of other rows, as after a concat of the folds."""
    target, scores = pd.Series(TARGET), pd.Series(SCORES)
    shuffled = scores.sample(frac=1, random_state=0)
    for call in (
        lambda own: find_weights({"a": own}, target, "auc", folds=None),
        lambda own: find_weights(pd.DataFrame({"a": own}), target, "auc", folds=None),
        lambda own: find_threshold(own, target, "f1"),
        lambda own: paired_bootstrap(target, SCORES, own, distance),
    ):
        with pytest.raises(ValueError, match="have the same rows in different orders, by their in"):
            call(shuffled)
        assert repr(call(shuffled.loc[target.index])) == repr(call(np.array(SCORES)))
    days = pd.date_range("2024", periods=20, tz="UTC")  # one order, in two time zones
    found = find_weights([scores.set_axis(days)], target.set_axis(days.tz_convert("EST")), "auc")
    assert found.single_score == 1


def test_models_are_numbers() -> None:
    """Means of complex numbers and of texts name the model; votes take texts."""
    for values in ([1j, 0.5], ["a", "b"], [None, 0.5]):
        for function in (blend.mean, blend.power_average, blend.rank_average, blend.correlation):
            with pytest.raises(TypeError, match=r"model 1 is of .*; expected real numbers"):
                function([0.5, 0.5], values)
    assert blend.majority_vote(["a", "b"], ["a", "c"]).tolist() == ["a", "b"]
    for missing in (None, math.nan, pd.NA):
        votes = pd.DataFrame({"x": ["a", "b"], "y": ["a", missing]}, dtype=object)
        with pytest.raises(ValueError, match="model 'y' has no label in row 1"):
            blend.majority_vote(votes)


def test_labels_as_objects() -> None:
    """A column of objects has the classes of its values."""
    labels = np.array([0, 1] * 10, dtype=object)
    expected = make_folds(20, 2, "stratified", targets=[0, 1] * 10).hash
    assert make_folds(20, 2, "stratified", targets=labels).hash == expected


def test_folds_of_a_dataset_read_no_sample() -> None:
    """Plain folds of a dataset need its length alone."""

    class Images(torch.utils.data.Dataset[Tensor]):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> Tensor:
            raise AssertionError(f"sample {index} was read")

    assert make_folds(Images(), 3).hash == make_folds(6, 3).hash


# ---------------------------------------------------------------- paths


def test_another_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was made with a relative path writes to one place, also after a change of directory."""
    Path("elsewhere").mkdir()
    manager = CheckpointManager("logs")
    manager.process(0.5, 1, make_checkpoint("a", 1, MODEL))
    run = start_run("runs", {})
    loggers = [JsonLinesLogger(run), TensorBoardLogger(run)]
    assert (str(run), manager.best_path) == ("runs/001", Path("logs/best.pth"))
    for step in (1, 2):
        for logger in loggers:
            logger.log_metrics({"loss": 1}, step)
            logger.log_text("note", "text", step)
        monkeypatch.chdir("elsewhere" if step == 1 else "..")
    monkeypatch.chdir("elsewhere")
    manager.process(0.4, 2, make_checkpoint("a", 2, MODEL))
    for logger in loggers:
        logger.close()
    record_scores(run, validation=0.5)
    [info] = read_runs(run)
    run.close()
    assert manager.best_path.exists()
    assert not [*Path().iterdir()]
    assert info.metrics["loss"].values == 2
    monkeypatch.chdir("..")
    assert len(json.loads(Path("logs/metrics.json").read_text())["values"]) == 2
    assert json.loads(Path("runs/001/run.json").read_text())["sessions"][0]["state"] == "finished"
    assert len(list(Path("runs/001").glob("events*"))) == 1


def test_the_directory_changes_while_a_thread_writes() -> None:
    """A thread has an absolute path: the program may change the directory while it is used."""
    run, lines = start_run("runs", {}), JsonLinesLogger("lines")
    board, manager = TensorBoardLogger("board"), CheckpointManager("logs")
    reads: list[Callable[[], Path]] = [
        lambda: run.path,
        lambda: lines.logdir,
        lambda: board.logdir,
        lambda: manager.logdir,
        lambda: manager.last_path,
    ]
    with ThreadPoolExecutor() as pool:
        for read in reads:
            found = pool.submit(read).result()
            assert (found, read()) == (Path.cwd() / read(), found.relative_to(Path.cwd()))
    run.close()


# ---------------------------------------------------------------- objects


def test_copies_of_what_was_loaded() -> None:
    """A copy of a loaded checkpoint has its report."""
    save_checkpoint(make_checkpoint("a", 1, MODEL), "a.pth")
    loaded = load_checkpoint("a.pth", MODEL)
    for copied in (copy.copy(loaded), copy.deepcopy(loaded), loaded.copy()):
        assert list(copied) == list(loaded)
        assert copied.report.loaded == ["model.weight", "model.bias"]


def test_weights_of_files() -> None:
    """Files have weights by their paths, or in order from an iterator, read once."""
    for number in (1.0, 4.0):
        save_checkpoint({"model_state_dict": {"w": torch.tensor(number)}}, f"{number:g}.pth")
    paths: list[Any] = ["1.pth", Path("4.pth")]
    by_path = average_checkpoints(paths, {"4.pth": 2, Path("1.pth"): 1})
    in_order = save_average(paths, "out.pth", (weight for weight in [1, 2]))
    assert by_path["w"] == in_order["model_state_dict"]["w"] == 3
    with pytest.raises(ValueError, match=r"weights are of 1.pth, but the checkpoints are 1.pth, 4"):
        average_checkpoints(paths, {"1.pth": 1})


def test_weights_by_the_names_of_pandas() -> None:
    """A column of weights with names is matched by them, also if its order is another one."""
    models = {"a": [0.0], "b": [1.0]}
    weights = pd.Series({"b": 1.0, "a": 3.0})
    assert blend.mean(models, weights=weights) == [0.25]
    for number in (0, 1):
        save_checkpoint({"model_state_dict": {"w": torch.tensor(float(number))}}, f"{number}.pth")
    weights = pd.Series({"1.pth": 1.0, "0.pth": 3.0})
    assert average_checkpoints(["0.pth", "1.pth"], weights)["w"] == 0.25


def test_one_name_for_several() -> None:
    """A text is one name, and not its letters."""
    Path("a.csv").write_text("id,p\n1,0.5\n")
    assert blend.blend_files(["a.csv"], columns="p")["p"].to_list() == [0.5]
    assert blend.correlation([SCORES], names="cnn").names == ["cnn"]
    table = {"day": np.arange(20) * 2, "x": SCORES}
    seen = look(table, table, ids="x").columns
    assert dict(seen.select("column", "kind").iter_rows()) == {"day": "feature", "x": "id"}
    rows: dict[str, Any] = {"ab": TARGET, "x": list(range(20))}
    with pytest.raises(ValueError, match=r"rows have exact duplicates .* Not compared: 'x'"):
        check_folds(make_folds(20, 2), data=rows, ids="x")
    with warnings.catch_warnings():
        set_backends(ignore_warnings="known")
        with pytest.raises(UserWarning, match="own"):
            warnings.warn("own", stacklevel=1)


@pytest.mark.parametrize("metric", [distance, "rmse", "accuracy", "f1"])
def test_scores_of_one_column(metric: Any) -> None:
    """Predictions and targets of (rows, 1) have the score of (rows,), whatever the metric is."""
    scores, target = np.array(SCORES), np.array(TARGET)
    folds = Folds(np.arange(20) // 5, "kfold")

    def found(own: Any, truth: Any) -> Any:
        oof = OutOfFold(folds)
        for fold, (_, valid) in enumerate(folds):
            oof.add(fold, own[valid])
        return oof.score(truth, metric)

    expected = found(scores, target)
    for own, truth in ((scores[:, None], target), (scores, target[:, None])):
        assert found(own, truth) == expected


def test_predictions_in_columns() -> None:
    """Predictions may be columns of pandas and polars, and ids may come from a generator."""
    for column in (pd.Series([0.5, 1.0]), pl.Series([0.5, 1.0])):
        outputs = Predictions(2)
        outputs.add([1, 0], p=column)
        assert outputs.gather().p.tolist() == [1.0, 0.5]
    outputs.save("valid.npy", ids=(name for name in "ab"))
    assert predictions.load("valid.npy")["id"].tolist() == ["a", "b"]


def test_targets_in_one_column() -> None:
    """A frame of one column is the targets."""
    target = pd.DataFrame({"y": TARGET})
    assert repr(find_weights([SCORES], target, "rmse")) == repr(
        find_weights([SCORES], TARGET, "rmse")
    )


def test_foreign_states() -> None:
    """A state that has no numbers is refused, and nothing changes."""
    parts: list[Any] = [AverageMeter(), EarlyStopping(metric_minimization=True), StepPolicy()]

    for part in parts:
        state = part.state_dict()
        for name in state:
            with pytest.raises(TypeError, match=r" is 'x'; expected"):
                part.load_state_dict({**state, name: "x"})
        part.load_state_dict(state)
        assert part.state_dict() == state


def test_states_that_lack_a_value() -> None:
    """The error has the names that are missing, and the function that returns such states."""
    parts: list[Any] = [AverageMeter(), EarlyStopping(metric_minimization=True), StepPolicy()]
    parts += [EMA(MODEL), PerRank(AverageMeter()), JsonLinesLogger("lines")]
    for part in (*parts, DataLoader(RANGE)):
        state = part.state_dict()
        for name in state.keys() - {"length", "order", "step"} if part not in parts else state:
            rest = {key: value for key, value in state.items() if key != name}
            told = rf"the state has no '{name}'; expected what .*state_dict returns"
            with pytest.raises(KeyError, match=told):
                part.load_state_dict(rest)
        with pytest.raises(TypeError, match=r"the state is None; expected what .*state_dict"):
            part.load_state_dict(None)


def test_slips_of_names() -> None:
    """A list of loggers, a metric without a name and a device by a dict are told at once."""
    with pytest.raises(TypeError, match=r"is no logger: pass each logger as an argument"):
        Loggers([JsonLinesLogger("a")])  # type: ignore[arg-type]
    for metric in ("", "epoch", len):
        with pytest.raises(ValueError, match=r"metric is .*; expected a name, other than 'epoch'"):
            CheckpointManager("logs", metric=metric, metric_minimization=True)  # type: ignore[arg-type]
    for place, scores in ((find_weights, [SCORES]), (blend.find_thresholds, SCORES)):
        with pytest.raises(ValueError, match="metric is 3; expected a function, one of auc"):
            place(scores, TARGET, 3, metric_minimization=True)  # type: ignore[arg-type]
    save_checkpoint(make_checkpoint("a", 1, MODEL), "a.pth")
    with pytest.raises(ValueError, match=r"unknown device {'cuda:0': 'cpu'}: expected a torch.d"):
        load_checkpoint("a.pth", map_location={"cuda:0": "cpu"})  # type: ignore[arg-type]


def test_a_part_of_runs() -> None:
    """The first of the best runs are runs too, with the directions that were told."""
    for number in range(3):
        Path(f"runs/{number}").mkdir(parents=True)
        record_scores(f"runs/{number}", folds={"first": 0.5, "second": float(number)}, metric="f")
    runs = read_runs("runs", metric_minimization={"f": True})[:2]
    assert [run.name for run in runs] == ["0", "1"]
    assert len(runs.rows()) == 2
    assert runs.lower_is_better("f")
    with pytest.raises(TypeError, match=r"the metric 'f' has to know whether lower is better.*max"):
        read_runs("runs", metric_minimization={"f": "max"})  # type: ignore[dict-item]
