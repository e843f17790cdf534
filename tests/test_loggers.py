from __future__ import annotations

import importlib
import json
import math
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from PIL import Image
from ranks import run_ranks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from trackers import (
    Scalars,
    _with_a_store,
    all_of_them,
    each_logger,
    new_store,
    pytestmark,
    read_events,
    read_json,
)

from batteries import (
    JsonLinesLogger,
    Loggers,
    MLflowLogger,
    TensorBoardLogger,
    TensorBoardXLogger,
    TrackioLogger,
    WandbLogger,
    load_checkpoint,
    make_checkpoint,
    resume,
    save_checkpoint,
)
from batteries._files import make_directory
from batteries.loggers import read_lines
from batteries.loggers._pictures import histogram_of
from batteries.loggers._wandb import read_offline

__all__ = ["_with_a_store", "new_store", "pytestmark"]  # fixtures, and where these tests run


@each_logger
def test_what_is_logged_is_read(kind: Any, read: Callable[[str], Scalars]) -> None:
    """The tracker's own reader finds every number, under its joined name and at its step."""
    with kind("logs") as logger:
        logger.log_params({"lr": 1e-3, "model": {"width": 32}})
        for step in (1, 2):
            loss = torch.tensor(step / 2, requires_grad=True)
            logger.log_metrics({"train": {"loss": loss}, "lr": step}, step)
        logger.log_text("note", "as <b>before</b>", 2)
    assert read("logs") == {"train/loss": [(1, 0.5), (2, 1.0)], "lr": [(1, 1.0), (2, 2.0)]}


@each_logger
@pytest.mark.usefixtures("_with_a_store")
def test_going_on(kind: Any, read: Callable[[str], Scalars]) -> None:
    """A run that goes on from a checkpoint is the same run, and has each step once."""
    logger, model = kind("logs"), nn.Linear(1, 1)
    for step in range(1, 6):
        logger.log_metrics({"loss": step}, step)
        if step == 3:
            save_checkpoint(make_checkpoint("train", 3, model, logger=logger), "last.pth")
    logger.close()
    again = kind("logs")
    load_checkpoint("last.pth", model, logger=again)
    assert again.run_id == logger.run_id
    with again:
        for step in range(4, 8):
            again.log_metrics({"loss": step}, step)
    assert read("logs") == {"loss": [(step, float(step)) for step in range(1, 8)]}


@each_logger
@pytest.mark.usefixtures("_with_a_store")
def test_going_on_after_half_a_step(kind: Any, read: Callable[[str], Scalars]) -> None:
    """What the killed session had not logged of its last step is there when the run goes on."""
    logger = kind("logs")
    logger.log_metrics({"train": {"loss": 1}, "valid": {"loss": 1}}, 1)
    state = logger.state_dict()
    logger.log_metrics({"train": {"loss": 2}}, 2)
    logger.close()
    again = kind("logs")
    again.load_state_dict(state)
    with again:
        again.log_metrics({"train": {"loss": 2}}, 2)
        again.log_metrics({"valid": {"loss": 2}}, 2)
    expected = [(1, 1.0), (2, 2.0)]
    assert read("logs") == {"train/loss": expected, "valid/loss": expected}


def log_all(logger: Any, step: int) -> None:
    logger.log_image("batch", np.zeros((2, 2)), step)
    logger.log_histogram("weights", [1, 2], step)
    logger.log_text("note", "a", step)


def test_the_step_of_a_picture_counts() -> None:
    """What was logged before the checkpoint stays, also if the step has no metrics yet."""
    with JsonLinesLogger("logs") as logger:
        logger.log_metrics({"loss": 1}, 1)
        log_all(logger, 2)
        state = logger.state_dict()
        log_all(logger, 3)
    assert state["step"] == 2
    with JsonLinesLogger("logs") as again:
        again.load_state_dict(state)
        log_all(again, 3)
    assert [line["step"] for line in read_lines("logs")] == [1, 2, 2, 2, 3, 3, 3]


def test_wandb_has_each_picture_once() -> None:
    """A resumed run does not write the images, histograms and texts again that W&B has."""
    logger = WandbLogger("logs")
    log_all(logger, 1)
    state = logger.state_dict()
    log_all(logger, 2)
    logger.close()
    with WandbLogger("logs") as again:
        again.load_state_dict(state)
        log_all(again, 2)
        log_all(again, 3)
    files = Path("logs").rglob("*.wandb")
    rows = [each.history for file in files for each in read_offline(file)]
    keys = [item.nested_key[0] for row in rows for item in row.item if "_type" in item.nested_key]
    assert sorted(keys) == sorted(["batch", "weights", "note"] * 3)


@each_logger
@pytest.mark.usefixtures("_with_a_store")
def test_no_checkpoint_was_kept(kind: Any, read: Callable[[str], Scalars]) -> None:
    """A run that was killed before its first checkpoint starts over, and has each step once."""
    for _ in range(2):
        loggers = Loggers(kind("logs", run_id="a"))
        assert resume("checkpoints", nn.Linear(1, 1), loggers=loggers) is None
        with loggers:
            for step in (1, 2, 3):
                loggers.log_metrics({"loss": step}, step)
    assert read("logs") == {"loss": [(1, 1.0), (2, 2.0), (3, 3.0)]}


def test_nothing_is_lost_by_starting_over() -> None:
    """The lines of a run that starts over are put aside; without `resume` lines are added."""
    for step in (1, 2):
        with JsonLinesLogger("logs") as logger:
            logger.log_metrics({"loss": 0.5}, step)
    logger = JsonLinesLogger("logs")
    resume("checkpoints", logger=logger)
    with logger:
        logger.log_metrics({"loss": 0.4}, 1)
    assert read_json("logs/metrics.1.jsonl") == {"loss": [(1, 0.5), (2, 0.5)]}
    assert read_json("logs") == {"loss": [(1, 0.4)]}


# ---------------------------------------------------------------- failures


def test_one_that_fails() -> None:
    """A logger that fails is reported once, and the others have everything."""
    Path("file").touch()
    loggers = Loggers(JsonLinesLogger("file"), JsonLinesLogger("good"), Broken())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(5):
            loggers.log_metrics({"loss": step}, step)
        loggers.close()
    texts = [str(warning.message) for warning in caught]
    assert sum("JsonLinesLogger (file) fails" in text for text in texts) == 1
    assert sum("Broken.log_metrics fails" in text for text in texts) == 1
    assert "JsonLinesLogger: 5 calls were lost" in texts
    assert read_json("good") == {"loss": [(step, float(step)) for step in range(5)]}


class Late(JsonLinesLogger):
    """A logger whose tracker is asked for long, and then fails."""

    asked = threading.Event()

    def _open(self) -> None:
        assert self.asked.wait(60)
        raise OSError("no tracker")


def test_states_are_not_lost() -> None:
    """A state that is asked for while the tracker opens is not counted as a lost call."""
    logger = Late("logs")
    logger.log_metrics({"loss": 0.5}, 1)
    threading.Timer(0.1, Late.asked.set).start()
    assert logger.state_dict()["step"] == 1
    with pytest.warns(UserWarning, match="fails|were lost") as caught:
        logger.close()
    assert str(caught[-1].message) == "Late: 1 calls were lost"


class Broken:
    """A logger of the user's own."""

    def log_metrics(self, *_: Any) -> None:
        raise ConnectionError("no network")

    log_params = log_figure = log_text = log_metrics

    def close(self) -> None: ...


class BrokenAtTheEnd(JsonLinesLogger):
    def close(self) -> None:
        super().close()
        raise ConnectionError("no network")


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_fails_to_close(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A logger that cannot be closed hides no error of the training; the others are closed."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    good = JsonLinesLogger("good")
    loggers = Loggers(BrokenAtTheEnd("broken"), good)
    with (
        pytest.warns(UserWarning, match="BrokenAtTheEnd.__exit__ fails, and training goes on"),
        pytest.raises(ZeroDivisionError),
        loggers,
    ):
        raise ZeroDivisionError
    loggers.close()
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RuntimeError, match="was closed"):
        good.log_text("note", "late", 1)


@each_logger
@pytest.mark.usefixtures("_with_a_store")
def test_names_stay_apart(kind: Any, read: Callable[[str], Scalars]) -> None:
    """Names that a tracker cannot tell apart, or has a use of its own for, lose no number."""
    names = ["a b", "a_b", "a@b", "a:b", "global_step", "_step", "a/b"]
    for step in (1, 2):
        logger = kind("logs", run_id='it\'s "one"' if kind is MLflowLogger else "one")
        logger.load_state_dict({"run_id": logger.run_id, "step": step - 1})
        with logger:
            values = {name: step + number / 8 for number, name in enumerate(names)}
            for name in names if step == 1 else reversed(names):
                logger.log_metrics({name: values[name]}, step)
    expected = [[(step, step + number / 8) for step in (1, 2)] for number in range(len(names))]
    assert sorted(read("logs").values()) == expected


@pytest.mark.parametrize("kind", [JsonLinesLogger, Loggers])
def test_names_that_are_one_when_joined(kind: Any) -> None:
    """Nested names that become equal are an error at the first call."""
    with kind() if kind is Loggers else kind("logs") as logger:
        with pytest.raises(ValueError, match="two values have the name 'a/b' when nested names "):
            logger.log_metrics({"a/b": 1, "a": {"b": 2}}, 1)
        with pytest.raises(ValueError, match="two values have the name 'a/b' when nested names "):
            logger.log_params({"a/b": 1, "a": {"b": 2}})


def test_lines_are_read_by_others() -> None:
    """Numbers that are not finite leave the lines readable by polars, jq and JavaScript."""
    import polars

    path = Path("logs/metrics.jsonl")
    with JsonLinesLogger("logs") as logger:
        logger.log_params({"best": math.inf, "list": [math.nan], "deep": {"x": -math.inf}})
        for step in range(300):
            logger.log_metrics(
                {"loss": math.nan if step in (0, 299) else 0.5, "a": -math.inf}, step
            )
    table = polars.read_ndjson(path).unnest("metrics")
    assert table["loss"].drop_nulls().sum() == 149
    loss = ".metrics.loss | numbers"
    found = subprocess.run(["jq", loss, path], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["0.5"] * 298
    if node := shutil.which("node"):
        lines = f"require('fs').readFileSync('{path}', 'utf8').trim().split('\\n')"
        program = f"for (const line of {lines}) JSON.parse(line)"
        subprocess.run([node, "-e", program], check=True)
    assert math.isnan(read_json("logs")["loss"][-1][1])
    assert read_json("logs")["a"][0] == (0, -math.inf)
    path.write_text('{"step": 1, "metrics": {"loss": "nan", "name": "x"}}\n')
    assert str(read_json("logs")) == "{'loss': [(1, nan)], 'name': [(1, 'x')]}"


def test_params_without_end() -> None:
    """Params with cycles and long lists are written, without secrets."""
    params: dict[str, Any] = {"many": list(range(10**6)), "hf_token": "c0ffee99"}
    params["self"] = params
    with JsonLinesLogger("logs") as logger:
        logger.log_params(params)
    [line] = read_lines("logs")
    assert (line["params"]["hf_token"], line["params"]["self/self"]) == ("***", "... (a cycle)")


def test_no_secret_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B, which records the command line by itself, does not where that has a secret."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--api-key", "c0ffee99", "--lr", "0.1"])
    with WandbLogger("logs") as logger:
        logger.log_params({"hf_token": "c0ffee99", "lr": 0.1})
    files = [path for path in Path("logs").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"c0ffee99" in path.read_bytes()]


def test_a_fast_loop() -> None:
    """A loop that logs faster than can be written is held up, and loses nothing."""
    with JsonLinesLogger("logs") as logger:
        for step in range(40_000):
            logger.log_metrics({"loss": 0.5}, step)
    assert len(read_json("logs")["loss"]) == 40_000


def test_torn_lines() -> None:
    """A torn last line is not read, and is gone when the run goes on."""
    with JsonLinesLogger("logs") as logger:
        logger.log_metrics({"loss": float("nan")}, 1)
    path = Path("logs/metrics.jsonl")
    path.write_bytes(path.read_bytes() + b'foreign\n{"step": 2, "metr')
    assert str(read_json("logs")) == "{'loss': [(1, nan)]}"
    with JsonLinesLogger("logs") as logger:
        logger.log_metrics({"loss": 0.5}, 2)
    assert str(read_json("logs")) == "{'loss': [(1, nan), (2, 0.5)]}"
    assert b"metr\n" not in path.read_bytes()


def test_not_a_number() -> None:
    """A metric that is not one number is named."""
    loggers = Loggers(JsonLinesLogger("logs"))
    with pytest.raises(TypeError, match=r"'train/loss' is a tensor of shape \(2,\)"):
        loggers.log_metrics({"train": {"loss": torch.zeros(2)}}, 1)
    with pytest.raises(TypeError, match="'name' is 'digits'; expected one number"):
        loggers.log_metrics({"name": "digits"}, 1)  # type: ignore[dict-item]


def test_state_comes_first() -> None:
    """A state that comes after the first call is refused; so is a call after the end."""
    logger = JsonLinesLogger("logs")
    logger.log_metrics({"loss": 1}, 1)
    with pytest.raises(RuntimeError, match="load its state before the first call"):
        logger.load_state_dict(logger.state_dict())
    logger.close()
    with pytest.raises(RuntimeError, match="JsonLinesLogger was closed"):
        logger.log_metrics({"loss": 1}, 2)


# ---------------------------------------------------------------- the rest of the promises


def test_figures(new_store: Path) -> None:
    """Figures, images and histograms are in each tracker, and beside the lines."""
    from matplotlib.figure import Figure

    shutil.copy(new_store, make_directory("logs/MLflowLogger"))
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.subplots().plot([1, 2])
    with Loggers(*all_of_them("logs")) as loggers:
        loggers.log_figure("valid/curve", figure, 3)
        loggers.log_image("batch", torch.rand(3, 50, 100), 3)
        loggers.log_histogram("weights", torch.tensor([[0.0, 1.0], [1.0, math.nan]]), 3, 2)
    line, image_line, histogram_line = read_lines("logs/JsonLinesLogger")
    assert line["figure"] == {"valid/curve": "figures/valid_curve-f2d4_3.png"}
    assert image_line["figure"] == {"batch": "figures/batch_3.png"}
    told = {"counts": [1, 2], "edges": [0.0, 0.5, 1.0], "lost": 1}
    assert histogram_line["histogram"] == {"weights": told}
    [stored] = Path("logs/MLflowLogger").rglob("weights_3.json")
    assert json.loads(stored.read_text()) == told
    pictures = list(Path("logs").rglob("*.png"))
    places = {path.relative_to("logs").parts[0] for path in pictures}
    assert places == {"JsonLinesLogger", "MLflowLogger", "WandbLogger"}
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.size == (100, 50)
    for kind in ("TensorBoardLogger", "TensorBoardXLogger"):
        [image] = EventAccumulator(f"logs/{kind}").Reload().Images("valid/curve")
        assert (image.step, image.width, image.height) == (3, 100, 50)
        events = EventAccumulator(f"logs/{kind}").Reload()
        [image] = events.Images("batch")
        assert (image.step, image.width, image.height) == (3, 100, 50)
        [histogram] = events.Histograms("weights")
        values = histogram.histogram_value
        assert (values.num, values.sum, values.min, values.max) == (3, 2, 0, 1)
        assert list(values.bucket) == [1, 2]


@pytest.mark.parametrize(
    ("image", "pixels"),
    [
        (np.arange(24, dtype=np.uint8).reshape(2, 3, 4), None),
        (np.array([[0.0, 1.0], [0.5, 0.2]]), np.array([[0, 255], [128, 51]])),
        (torch.arange(18, dtype=torch.uint8).reshape(3, 2, 3), None),
        (torch.tensor([[[True, False]]]), np.array([[255, 0]])),
    ],
)
def test_images(image: Any, pixels: Any) -> None:
    """Pillow reads the pixels of each kind of image that was logged."""
    with JsonLinesLogger("logs") as logger:
        logger.log_image("a", image, 1)
    given = image.movedim(0, -1).numpy() if isinstance(image, torch.Tensor) else image
    with Image.open("logs/figures/a_1.png") as picture:
        read = np.asarray(picture)
    assert read.tolist() == (given if pixels is None else pixels).tolist()


@pytest.mark.parametrize("mode", ["P", "PA", "LA", "CMYK", "YCbCr", "HSV", "RGBa", "RGBX"])
def test_images_of_other_modes_of_pillow(mode: str) -> None:
    """An image of Pillow has its own colors in the file, however it stores them."""
    way = {"PA": "P", "RGBa": "RGBA"}.get(mode, mode)
    given = Image.new("RGB", (3, 2), (200, 10, 30)).convert(way).convert(mode)
    with JsonLinesLogger("logs") as logger:
        logger.log_image("a", given, 1)
    with Image.open("logs/figures/a_1.png") as picture:
        assert picture.convert("RGB").tobytes() == given.convert("RGB").tobytes()


def test_what_is_no_image() -> None:
    """Another shape, type or range is named with what was expected."""
    with JsonLinesLogger("logs") as logger:
        for image, text in (
            (np.zeros((3, 8, 8)), r"shape \(3, 8, 8\); expected \(height, width\)"),
            (np.full((2, 2), 7.0), "values from 7 to 7; expected floats from 0 to 1"),
            (np.zeros((2, 2), np.int64), "is of int64; expected uint8"),
        ):
            with pytest.raises(ValueError, match=text):
                logger.log_image("a", image, 1)
        with pytest.raises(ValueError, match=r"shape \(2, 8, 9\); expected"):
            logger.log_image("a", torch.zeros(2, 8, 9), 1)
        with pytest.raises(TypeError, match="histogram 'w' is of str; expected numbers"):
            logger.log_histogram("w", "many", 1)
        with pytest.raises(TypeError, match="figure 'f' is 3; expected a figure of matplotlib"):
            logger.log_figure("f", 3, 1)


@pytest.mark.parametrize(
    "values",
    [np.array([1 + 2j]), torch.tensor([1 + 2j]), ["1", "2"], [1.0, None], [[1], [1, 2]],
     np.array(["2020-01-01"], dtype="datetime64[D]")],
)  # fmt: skip
def test_values_that_have_no_histogram(values: Any) -> None:
    """What is no real number raises: no imaginary part is left out, and no text is read."""
    with JsonLinesLogger("logs") as logger, pytest.raises(TypeError, match=r"'w' is .*; expected"):
        logger.log_histogram("w", values, 1)


class Numbers:
    """A tracker of somebody's own, with what it needs and no more."""

    def __init__(self) -> None:
        self.found: list[Any] = []

    def log_metrics(self, metrics: Any, step: int) -> None:
        self.found.append((metrics, step))

    def close(self) -> None:
        self.found.append("closed")


def test_a_tracker_of_your_own() -> None:
    """Two methods are a logger; what it does not have is not asked of it."""
    own = Numbers()
    with Loggers(own) as loggers:
        loggers.log_params({"lr": 0.1})
        loggers.log_metrics({"train": {"loss": torch.tensor(0.5)}}, 1)
        loggers.log_image("a", np.zeros((2, 2)), 1)
        loggers.log_text("a", "b", 1)
    assert own.found == [({"train/loss": 0.5}, 1), "closed"]


def test_trackio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trackio has what was logged; a run that goes on is the same one, and no step is twice."""
    monkeypatch.setenv("TRACKIO_DIR", str(Path("trackio").resolve()))
    trackio = pytest.importorskip("trackio", reason="it wants an older Pillow than the rest")
    for start, steps in ((None, (1, 2)), (1, (2, 3))):
        with TrackioLogger("runs/digits", project="digits", run_id="a" * 16) as logger:
            if start is not None:
                logger.load_state_dict({"run_id": "a" * 16, "step": start})
            logger.log_params({"lr": 0.1})
            for step in steps:
                logger.log_metrics({"train": {"loss": 1 / step}}, step)
            logger.log_image("batch", np.zeros((4, 4)), steps[-1])
            logger.log_histogram("weights", np.arange(9), steps[-1])
    [run] = trackio.Api().runs("digits")
    assert run.name == "digits-aaaaaaaa"
    assert run.config["lr"] == 0.1
    storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    rows = storage.get_logs("digits", run.name)
    losses = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert losses == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert {"batch", "weights"} <= {name for row in rows for name in row}


def test_the_specification_spells_it() -> None:
    """`add_metric(tag, value, global_step)` is a number in the file."""
    with TensorBoardXLogger("logs") as logger:
        logger.add_metric("loss", 0.5, global_step=7)
    assert read_events("logs") == {"loss": [(7, 0.5)]}


def test_two_of_a_kind() -> None:
    """Two loggers of one kind each have a state of their own."""
    first = Loggers(JsonLinesLogger("a"), JsonLinesLogger("b"))
    again = Loggers(JsonLinesLogger("a"), JsonLinesLogger("b"))
    again.load_state_dict(first.state_dict())
    assert again.state_dict() == first.state_dict()
    assert list(first.state_dict()) == ["JsonLinesLogger", "JsonLinesLogger 2"]


def log_on_each_rank(directory: str) -> None:
    with TensorBoardLogger(directory) as tensorboard:
        tensorboard.log_metrics({"loss": 1.0}, step=1)


def test_rank_zero_writes(tmp_path: Path) -> None:
    """Rank 0 writes once what all ranks log."""
    assert run_ranks(log_on_each_rank, str(tmp_path), world_size=3) == [None] * 3
    assert len(list(tmp_path.iterdir())) == 1
    assert read_events(tmp_path) == {"loss": [(1, 1.0)]}


@pytest.mark.parametrize(
    ("kind", "package"),
    [
        ("TensorBoardLogger", "tensorboard"),
        ("TensorBoardXLogger", "tensorboardX"),
        ("WandbLogger", "wandb"),
        ("MLflowLogger", "mlflow"),
    ],
)
def test_a_tracker_is_missing(kind: str, package: str) -> None:
    """Without the tracker's package the error is the command that installs it."""
    imported = ("tensorboard", "torch.utils.tensorboard")  # before the program was forked
    script = (
        "import sys\n"
        f"for name in [name for name in sys.modules if name.startswith({imported})]:\n"
        "    del sys.modules[name]\n"
        f"sys.modules[{package!r}] = None\n"
        f"import batteries; batteries.{kind}('x')"
    )
    result = warm.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        f"ModuleNotFoundError: {kind} needs {package}, which is not installed: "
        f"pip install {package}"
    )
    assert not Path("x").exists()


@pytest.mark.gpu
def test_device_tensors() -> None:
    """Numbers on a GPU are logged as they are, and read together."""
    losses = {str(number): torch.tensor(number / 2, device="cuda") for number in range(5)}
    with TensorBoardLogger("events") as tensorboard:
        tensorboard.log_metrics(losses, 1)
    assert read_events("events") == {str(number): [(1, number / 2)] for number in range(5)}


def test_dropped_loggers() -> None:
    """Loggers that are dropped without `close` write what they have, and end their threads."""
    before = set(threading.enumerate())
    for number in range(30):
        JsonLinesLogger(f"runs/{number}").log_metrics({"loss": number}, 1)
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()
    written = [next(read_lines(f"runs/{number}"))["metrics"]["loss"] for number in range(30)]
    assert written == [*range(30)]


@pytest.mark.parametrize(
    ("values", "lost"),
    [([1.0, np.nextafter(1, 2)], 0), ([1e308, -1e308, 1.0], 2), ([0.0, 5e-324], 0),
     ([9e299] * 2, 0), ([9e299, -9e299], 0), ([], 0)],
)  # fmt: skip
def test_histograms_of_any_numbers(values: list[float], lost: int) -> None:
    """Numbers that are nearly equal, tiny or huge have a histogram with the bins asked for."""
    for bins in (1, 64, 256):
        found = histogram_of("w", values, bins)
        assert (sum(found.counts), found.lost) == (len(values) - lost, lost)
        assert len(found.counts) == bins
        assert (np.diff(found.edges) > 0).all()
    with pytest.raises(ValueError, match="histogram 'w' has 300 bins; expected 1 to 256"):
        histogram_of("w", values, 300)
    with pytest.raises(TypeError, match=r"bins of the histogram 'w' is 2\.5; expected a whole"):
        histogram_of("w", values, 2.5)  # type: ignore[arg-type]


class Begun(JsonLinesLogger):
    """The first thread that begins waits a moment for a second one."""

    def __init__(self) -> None:
        self.first, self.second = threading.Event(), threading.Event()
        super().__init__("logs")

    def _look_around(self) -> None:
        if self.first.is_set():
            self.second.set()
        self.first.set()
        self.second.wait(0.2)


def test_two_threads_begin() -> None:
    """Threads of the program whose first calls come at once share one thread and one file."""
    lines = Begun()
    threads = [
        threading.Thread(target=lines.log_metrics, args=({"loss": 1}, step)) for step in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines.close()
    assert not lines.second.is_set()
    assert sorted(line["step"] for line in read_lines("logs")) == [1, 2]


class Exiting(JsonLinesLogger):
    def _write_metrics(self, rows: Any) -> None:  # noqa: ARG002
        sys.exit("the tracker gives up")


def test_a_tracker_that_exits() -> None:
    """A tracker that calls sys.exit in the thread is told of, as any other failure."""
    logger = Exiting("logs")
    logger.log_metrics({"loss": 1}, 1)
    with pytest.warns(match="SystemExit: the tracker gives up"), pytest.warns(match="1 calls"):
        logger.close()
