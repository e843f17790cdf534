from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from argparse import Namespace
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from torch import nn
from torch.nn.parallel import DataParallel

from batteries import (
    CheckpointError,
    CheckpointManager,
    distribute,
    load_checkpoint,
    make_checkpoint,
    resume,
    save_checkpoint,
    seed_all,
    unwrap,
)
from batteries.checkpoint import latest, read_checkpoint


def small(width: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 1))


def compiled(model: nn.Module) -> nn.Module:
    wrapped: Any = torch.compile(model, backend="eager")
    assert isinstance(wrapped, nn.Module)
    return wrapped


def compiled_inside(model: nn.Module) -> nn.Module:
    assert isinstance(model, nn.Sequential)
    model[0] = compiled(model[0])
    return model


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    steps: int = 2,
) -> None:
    for step in range(steps):
        model(torch.full((8, 4), step + 1.0) + torch.eye(8, 4)).square().sum().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


Parts = tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]


def parts() -> Parts:
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return model, optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2, 3])


def files(path: str | Path = ".") -> list[str]:
    return sorted(entry.name for entry in Path(path).iterdir())


def same(first: Any, second: Any) -> bool:
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
    return True


# ---------------------------------------------------------------- what a checkpoint holds


def test_keys() -> None:
    """A checkpoint has the specification's keys, then the keyword arguments."""
    checkpoint = make_checkpoint(
        "finetune", 3, *parts(), metrics={"loss": 0.1}, experiment_args={"lr": 1}, model_args={}
    )
    assert list(checkpoint) == [
        "stage",
        "epoch",
        "model_state_dict",
        "optimizer_state_dict",
        "scheduler_state_dict",
        "metrics",
        "experiment_args",
        "model_args",
    ]


def test_opens_without_this_library() -> None:
    """Plain `torch.load` opens a file in a process that never imports this library."""
    save_checkpoint(make_checkpoint("train", 1, *parts(), args=Namespace(path=Path("a"))), "a.pth")
    script = (
        "import sys, torch; checkpoint = torch.load('a.pth'); print(checkpoint['args'])\n"
        "assert 'batteries' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout == "{'path': 'a'}\n", result.stderr


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (Path("runs/a"), str(Path("runs/a"))),
        (Namespace(lr=np.float64(0.1), inner=Namespace(path=Path("a"))), None),
        ([Path("a"), (np.float32(1),)], ["a", (1.0,)]),
        ({np.int64(1): {Path("a")}}, {1: {"a"}}),
        ({np.str_("a"): {np.str_("b"): 1}}, {"a": {"b": 1}}),
        (Counter("aab"), Counter("aab")),
        (OrderedDict(a=1), OrderedDict(a=1)),
        (2**200, 2**200),
    ],
)
def test_plain_values(value: object, plain: object) -> None:
    """Numpy scalars, Paths and Namespaces become plain values when the checkpoint is made."""
    if isinstance(value, Namespace):
        plain = {"lr": 0.1, "inner": {"path": "a"}}
    checkpoint = make_checkpoint("train", 1, small(), value=value)
    assert checkpoint["value"] == plain
    save_checkpoint(checkpoint, "a.pth")
    loaded = torch.load("a.pth")["value"]
    assert loaded == plain
    assert type(loaded) is type(plain)


def test_arrays_become_tensors() -> None:
    """Numpy arrays are stored as tensors, copied."""
    array = np.arange(3)
    checkpoint = make_checkpoint("train", 1, small(), array=array)
    array[:] = 9
    assert checkpoint["array"].equal(torch.arange(3))


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"callbacks": [1, 2, object()]}, r"experiment_args\.callbacks\[2\], a builtins\.object"),
        ({"a-b": {1: print}}, r"experiment_args\['a-b'\]\[1\], a builtins\.builtin_function"),
        (lambda: 1, r"experiment_args, a builtins\.function"),
        (frozenset(), r"experiment_args, a builtins\.frozenset"),
        (np.array(["a"]), r"experiment_args, a numpy\.ndarray"),
        (2**2100, r"experiment_args, a builtins\.int"),
        (nn.ReLU, r"experiment_args, a builtins\.type"),
    ],
)
def test_refused_when_saved(value: object, place: str) -> None:
    """What torch.load would not read is refused when saved, with its place, before any writing."""
    Path("a.pth").write_bytes(b"old")
    checkpoint = make_checkpoint("train", 1, small(), experiment_args=value)
    with pytest.raises(TypeError, match=f"a checkpoint cannot hold {place}"):
        save_checkpoint(checkpoint, "a.pth")
    assert files() == ["a.pth"]
    assert Path("a.pth").read_bytes() == b"old"


@pytest.mark.parametrize(
    "wrap", [DataParallel, compiled, compiled_inside, lambda m: DataParallel(compiled(m))]
)
def test_wrappers_leave_no_trace(wrap: Callable[[nn.Module], nn.Module]) -> None:
    """Under every wrapper the keys are those of the bare model, and the keyword arguments stay."""
    model = small()
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    save_checkpoint(make_checkpoint("train", 1, wrap(model), model_args={"width": 3}), "a.pth")
    checkpoint = torch.load("a.pth")
    assert checkpoint["model_args"] == {"width": 3}
    assert list(checkpoint["model_state_dict"]) == list(expected)
    bare, wrapped = small(), wrap(small())
    load_checkpoint("a.pth", bare)
    load_checkpoint("a.pth", wrapped)
    assert same(dict(bare.state_dict()), expected)
    assert same(list(unwrap(wrapped).state_dict().values()), list(expected.values()))


def test_module_versions_travel() -> None:
    """The versions of the modules, by which torch reads older files, are kept."""
    model = compiled_inside(small())
    checkpoint = make_checkpoint("train", 1, model)
    assert checkpoint["model_state_dict"]._metadata == small().state_dict()._metadata  # type: ignore[attr-defined]


def save_on_rank_zero(path: str) -> bool:
    seed_all(0)
    model = distribute(small(), "cpu")
    checkpoint = make_checkpoint("train", 1, model, model_args={"width": 3})
    CheckpointManager(path).process(0.5, 1, checkpoint)
    assert list(checkpoint["model_state_dict"]) == list(small().state_dict())
    return bool(checkpoint["model_args"] == {"width": 3})


def test_under_ddp(tmp_path: Path) -> None:
    """In a group `process` may be called everywhere: rank 0 writes, bare names, all arguments."""
    assert run_ranks(save_on_rank_zero, str(tmp_path / "a"), world_size=3) == [True] * 3
    assert files(tmp_path / "a") == ["best.pth", "exp_1.pth", "last.pth", "metrics.json"]
    seed_all(0)
    model = small()
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    load_checkpoint(tmp_path / "a/best.pth", model)
    assert same(dict(model.state_dict()), expected)


# ---------------------------------------------------------------- loading


def test_resume_is_exact() -> None:
    """Model, optimizer and scheduler go on from a file as if they had never stopped."""
    seed_all(0)
    first = parts()
    train(*first)
    save_checkpoint(make_checkpoint("train", 2, *first), "last.pth")
    second = parts()
    assert load_checkpoint("last.pth", *second)["epoch"] == 2
    train(*first)
    train(*second)
    assert same(dict(first[0].state_dict()), dict(second[0].state_dict()))
    assert same(first[1].state_dict(), second[1].state_dict())
    assert first[2].get_last_lr() == second[2].get_last_lr()


def test_any_object_with_a_state() -> None:
    """Keyword arguments with a `state_dict` are stored through it and put back by name."""
    average = torch.optim.swa_utils.AveragedModel(small())
    average.update_parameters(small())
    checkpoint = make_checkpoint("train", 1, small(), ema=average)
    assert "ema_state_dict" in checkpoint
    save_checkpoint(checkpoint, "a.pth")
    restored = torch.optim.swa_utils.AveragedModel(small())
    load_checkpoint("a.pth", ema=restored)
    assert same(dict(restored.state_dict()), dict(average.state_dict()))


def test_bare_state_dict() -> None:
    """The state dict of a model loads, with a note; saved from DDP or compiled it does too."""
    model, other = small(), small()
    torch.save({f"module._orig_mod.{k}": v for k, v in model.state_dict().items()}, "weights.pth")
    with pytest.warns(UserWarning, match=r"weights\.pth is the bare state dict of a model"):
        checkpoint = load_checkpoint("weights.pth", other)
    assert list(checkpoint) == ["model_state_dict"]
    assert same(dict(other.state_dict()), dict(model.state_dict()))


def test_a_state_dict_that_we_saved() -> None:
    """A model's state dict that `save_checkpoint` has written loads as one of torch.save does."""
    model, other = small(), small()
    save_checkpoint(model.state_dict(), "weights.pth")
    load_checkpoint("weights.pth", other)
    assert same(dict(other.state_dict()), dict(model.state_dict()))


@pytest.mark.filterwarnings("ignore:.*resume got no model=")
@pytest.mark.parametrize("function", [load_checkpoint, read_checkpoint, latest, resume])
def test_warnings_show_the_program(function: Callable[..., Any]) -> None:
    """A warning has the line of the program, however deep in the library it was raised."""
    Path("logs").mkdir()
    torch.save(small().state_dict(), "logs/last.pth")
    with pytest.warns(UserWarning, match="is the bare state dict") as told:
        function("logs" if function in (latest, resume) else "logs/last.pth")
    assert {each.filename for each in told} == {__file__}


class Leftover:
    """A class of some other program."""


def write_foreign(kind: str) -> None:
    contents: dict[str, Callable[[], object]] = {
        "text": lambda: Path("a.pth").write_text("not a checkpoint"),
        "empty": lambda: Path("a.pth").touch(),
        "dict": lambda: torch.save({"weights": 1, "names": ["a"]}, "a.pth"),
        "empty dict": lambda: torch.save({}, "a.pth"),
        "list": lambda: torch.save([torch.zeros(1)], "a.pth"),
        "pickle": lambda: Path("a.pth").write_bytes(pickle.dumps({"a": 1})),
        "class": lambda: torch.save(Leftover(), "a.pth"),
        "module": lambda: torch.save(nn.Linear(1, 1), "a.pth"),
    }
    contents[kind]()


@pytest.mark.parametrize(
    "kind", ["text", "empty", "dict", "empty dict", "list", "pickle", "class", "module"]
)
def test_foreign_files(kind: str) -> None:
    """A file that is not a checkpoint is refused by name."""
    write_foreign(kind)
    with pytest.raises(CheckpointError, match=r"^a\.pth (is not a checkpoint|cannot be read)"):
        load_checkpoint("a.pth", small())


def test_what_a_foreign_file_has() -> None:
    """The refusal says what was expected and what was found."""
    write_foreign("dict")
    with pytest.raises(CheckpointError, match=r"expected a dict with 'model_state_dict'.*'names'"):
        load_checkpoint("a.pth")


def test_no_such_file() -> None:
    """A path that does not exist is named, with the checkpoints beside it."""
    save_checkpoint(make_checkpoint("train", 1, small()), "last.pth")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint best\.pth; \. has last\.pth"):
        load_checkpoint("best.pth")
    with pytest.raises(CheckpointError, match="is a directory"):
        load_checkpoint(".")


def test_model_of_another_shape() -> None:
    """Shapes that do not fit are named with both shapes and the remedy, and nothing changes."""
    save_checkpoint(make_checkpoint("train", 1, *parts()), "last.pth")
    model = small(width=5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = (
        r"model_state_dict\['0\.weight'\] is \(3, 4\) in last\.pth but \(5, 4\) in the model; .*"
        r"make the model as it was when it was saved"
    )
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint("last.pth", model, optimizer)
    assert same(dict(model.state_dict()), before)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_keys_that_do_not_fit() -> None:
    """Missing and unexpected keys are named, on which side they are."""
    save_checkpoint(make_checkpoint("train", 1, nn.Linear(2, 1)), "last.pth")
    with pytest.raises(CheckpointError, match=r"\['1\.weight'\] is not in last.*\['bias'\] is not"):
        load_checkpoint("last.pth", nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1)))


def test_missing_part() -> None:
    """An object whose state the file does not have is an error that says what it has."""
    save_checkpoint(make_checkpoint("train", 1, small()), "last.pth")
    model, optimizer, _ = parts()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"last\.pth has no optimizer_state_dict; it has sta"):
        load_checkpoint("last.pth", model, optimizer)
    assert same(dict(model.state_dict()), before)


def test_optimizer_that_does_not_fit() -> None:
    """An optimizer of other parameters is refused, and the model keeps its weights."""
    save_checkpoint(make_checkpoint("train", 1, *parts()), "last.pth")
    model = small()
    optimizer = torch.optim.AdamW([next(model.parameters())])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"optimizer_state_dict in last\.pth does not fit"):
        load_checkpoint("last.pth", model, optimizer)
    assert same(dict(model.state_dict()), before)


# ---------------------------------------------------------------- the manager


def run_manager(scores: list[float], **options: Any) -> CheckpointManager:
    manager = CheckpointManager("logs", **options)
    for epoch, score in enumerate(scores, start=1):
        manager.process(score, epoch, make_checkpoint("train", epoch, nn.Linear(1, 1)))
    return manager


def epoch_in(name: str) -> int:
    return int(load_checkpoint(Path("logs", name))["epoch"])


def test_best_few() -> None:
    """The best few, the best and the last are there, and nothing else."""
    manager = run_manager([0.3, 0.9, 0.5, 0.8, 0.1], metric_minimization=False, save_n_best=2)
    assert files("logs") == ["best.pth", "exp_2.pth", "exp_4.pth", "last.pth", "metrics.json"]
    assert (epoch_in("best.pth"), epoch_in("last.pth")) == (2, 5)
    assert manager.best_score == 0.9
    assert manager.best_path == Path("logs/best.pth")
    assert manager.last_path == Path("logs/last.pth")


def test_minimization() -> None:
    """With a loss, lower is better."""
    run_manager([0.3, 0.9, 0.1, 0.5], metric="loss", metric_minimization=True, save_n_best=2)
    assert files("logs") == ["best.pth", "exp_1.pth", "exp_3.pth", "last.pth", "metrics.json"]
    assert epoch_in("best.pth") == 3


def test_data_is_written_once() -> None:
    """An epoch that is best, last and among the best few is one file with three names."""
    run_manager([0.5])
    assert Path("logs/best.pth").samefile("logs/last.pth")
    assert Path("logs/best.pth").samefile("logs/exp_1.pth")
    assert Path("logs/best.pth").stat().st_nlink == 3


@pytest.mark.parametrize("minimize", [True, False])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_nan_is_never_best(odd: float, minimize: bool) -> None:
    """A NaN or infinite score is never best, even when it comes first, and evicts nothing."""
    run_manager([odd, 0.5, odd, 0.4, odd], metric_minimization=minimize, save_n_best=2)
    assert files("logs") == ["best.pth", "exp_2.pth", "exp_4.pth", "last.pth", "metrics.json"]
    assert epoch_in("best.pth") == (4 if minimize else 2)


def test_ties_keep_the_earlier() -> None:
    """Of equal scores the earlier epoch stays best."""
    run_manager([0.5, 0.5, 0.5], save_n_best=1)
    assert files("logs") == ["best.pth", "exp_1.pth", "last.pth", "metrics.json"]
    assert epoch_in("best.pth") == 1


def test_keep_none() -> None:
    """`save_n_best=0` keeps best and last alone."""
    run_manager([0.5, 0.4, 0.6], save_n_best=0)
    assert files("logs") == ["best.pth", "last.pth", "metrics.json"]
    assert (epoch_in("best.pth"), epoch_in("last.pth")) == (2, 3)


def test_metrics_file() -> None:
    """`metrics.json` has the metric, its direction and every epoch's scores, as strict JSON."""
    manager = CheckpointManager("logs", metric="accuracy", metric_minimization=False)
    checkpoint = make_checkpoint("train", 1, nn.Linear(1, 1))
    manager.process({"accuracy": torch.tensor(0.5), "loss": np.float32(2)}, np.int64(1), checkpoint)
    manager.process({"accuracy": math.nan}, 2, make_checkpoint("train", 2, nn.Linear(1, 1)))

    def no_constants(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = Path("logs/metrics.json").read_text()
    assert json.loads(text, parse_constant=no_constants) == {
        "metric_name": "accuracy",
        "metric_minimization": False,
        "values": [{"epoch": 1, "accuracy": 0.5, "loss": 2.0}, {"epoch": 2, "accuracy": None}],
    }


def test_memory() -> None:
    """A new manager on the directory ends as one that was never interrupted does."""
    scores = [0.3, math.nan, 0.5, 0.8, 0.1, 0.9, 0.2]
    for epoch, score in enumerate(scores, start=1):
        manager = CheckpointManager("logs", metric_minimization=False, save_n_best=3)
        manager.process(score, epoch, make_checkpoint("train", epoch, nn.Linear(1, 1)))
    assert files("logs") == [
        "best.pth", "exp_3.pth", "exp_4.pth", "exp_6.pth", "last.pth", "metrics.json"
    ]  # fmt: skip
    assert (epoch_in("best.pth"), epoch_in("last.pth")) == (6, 7)
    assert manager.best_score == 0.9


def test_coming_back_to_an_epoch() -> None:
    """Running an epoch again forgets it and what came after it."""
    run_manager([0.5, 0.4, 0.3, 0.2])
    manager = CheckpointManager("logs")
    manager.process(0.45, 2, make_checkpoint("again", 2, nn.Linear(1, 1)))
    assert files("logs") == ["best.pth", "exp_1.pth", "exp_2.pth", "last.pth", "metrics.json"]
    assert load_checkpoint("logs/best.pth")["stage"] == "again"
    assert [row["epoch"] for row in manager.history] == [1, 2]


@pytest.mark.parametrize("options", [{"save_n_best": None}, {"keep_every": 1}])
def test_coming_back_where_all_are_kept(options: dict[str, Any]) -> None:
    """The checkpoints of forgotten epochs are removed, also if those of all epochs are kept."""
    manager = CheckpointManager("logs", **options)
    for epoch in (1, 2, 3, 4, 2):
        manager.process(1 / epoch, epoch, make_checkpoint("train", epoch, nn.Linear(1, 1)))
    assert files("logs") == ["best.pth", "exp_1.pth", "exp_2.pth", "last.pth", "metrics.json"]


def test_what_cannot_be_saved_changes_nothing() -> None:
    """A checkpoint that is refused leaves the directory and the memory as they were."""
    manager = run_manager([0.5])
    before = {name: Path("logs", name).read_bytes() for name in files("logs")}
    bad = make_checkpoint("train", 2, nn.Linear(1, 1), hook=print)
    with pytest.raises(TypeError, match="cannot hold hook"):
        manager.process(0.1, 2, bad)
    assert {name: Path("logs", name).read_bytes() for name in files("logs")} == before
    assert manager.best_score == 0.5


def test_scores_without_the_metric() -> None:
    """A score dictionary without the metric is refused with what it has."""
    manager = CheckpointManager("logs", metric="accuracy", metric_minimization=False)
    with pytest.raises(KeyError, match=r"the score has no 'accuracy'.*it has 'loss', 'f1'"):
        manager.process({"loss": 1, "f1": 0.5}, 1, {})
    assert not Path("logs").exists()


@pytest.mark.parametrize("where", ["metric", "score"])
def test_long_names(where: str) -> None:
    """A name that metrics.json could not be read with is refused before anything is saved."""
    name = "x" * 1001
    manager = CheckpointManager("run", name if where == "metric" else "loss", True)
    checkpoint = make_checkpoint("train", 1, nn.Linear(2, 1))
    with pytest.raises(ValueError, match="name has 1,001 characters; expected 1,000 at most"):
        manager.process({manager.metric: 0.5, name: 0.5}, 1, checkpoint)
    assert not Path("run").exists()
    manager = CheckpointManager("run", "x" * 1000, True)
    manager.process({manager.metric: 0.5, "y" * 1000: 0.5}, 1, checkpoint)
    assert CheckpointManager("run", "x" * 1000, True).best_score == 0.5


def test_another_metric() -> None:
    """A directory that ranks by another metric is refused."""
    run_manager([0.5])
    with pytest.raises(ValueError, match=r"metrics\.json ranks by 'loss' .* not by 'accuracy'"):
        CheckpointManager("logs", metric="accuracy", metric_minimization=False)


def test_log_directory_that_is_a_file() -> None:
    """A log directory that is a file is named before any training."""
    Path("logs").touch()
    with pytest.raises(NotADirectoryError, match="logs is a file; choose another log directory"):
        CheckpointManager("logs")


def test_negative_save_n_best() -> None:
    """A negative number of checkpoints is refused."""
    with pytest.raises(ValueError, match="save_n_best is -1; expected 0 or more"):
        CheckpointManager("logs", save_n_best=-1)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks", "ignore:Validating sparse tensor")
@pytest.mark.parametrize("kind", ["dense", "parameter", "sparse"])
def test_checkpoints_of_gpus_open_anywhere(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain torch.load reads tensors onto the CPU, though torch had them on a GPU."""
    dense = torch.eye(3)
    kinds = {"dense": dense, "parameter": nn.Parameter(dense), "sparse": dense.to_sparse()}
    save_checkpoint({"weight": kinds[kind]}, "a.pth")  # tries once what torch reads
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _: "cuda:7")
        save_checkpoint({"weight": kinds[kind]}, "a.pth")
        torch.save({"weight": kinds[kind]}, "torch.pth")
    assert torch.load("a.pth")["weight"].to_dense().equal(dense)
    assert Path("a.pth").read_bytes().count(b"cpu") == 1  # for all tensors together
    with pytest.raises(RuntimeError, match="CUDA device"):
        torch.load("torch.pth")


@pytest.mark.gpu
def test_gpu_checkpoints_load_on_the_cpu() -> None:
    """What was saved from a GPU loads on the CPU by default, and into a model on the GPU."""
    model = small().cuda()
    save_checkpoint(make_checkpoint("train", 1, model), "a.pth")
    other = small().cuda()
    checkpoint = load_checkpoint("a.pth", other)
    assert all(value.is_cpu for value in checkpoint["model_state_dict"].values())
    assert all(value.is_cpu for value in torch.load("a.pth")["model_state_dict"].values())
    assert same(dict(other.state_dict()), dict(model.state_dict()))


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_shared_memory_on_a_gpu(device: str) -> None:
    """Tensors that share their memory share it when they are read onto a GPU."""
    whole = torch.arange(4.0)
    save_checkpoint({"whole": whole, "part": whole[:2], "same": whole}, "a.pth")
    found = load_checkpoint("a.pth", map_location=device)
    found["whole"].fill_(7)
    assert found["part"].tolist() == [7, 7]
    assert found["same"].tolist() == [7] * 4


def test_objects_are_not_called_like_options() -> None:
    """A name that loading could not take is refused by the save, and told by the load."""
    loader = torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1)
    with pytest.raises(ValueError, match="'prefix', which is an option of load_checkpoint"):
        make_checkpoint("train", 1, nn.Linear(1, 1), prefix=loader)
    with pytest.raises(TypeError, match="prefix is a SGD; expected a str: it is an option"):
        load_checkpoint("a.pth", nn.Linear(1, 1), prefix=loader)  # type: ignore[arg-type]
