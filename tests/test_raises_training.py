"""The errors of `test_raises` for the rooms of a training: each call raises what is documented."""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import math
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import batteries

b: Any = batteries
ck: Any = batteries.checkpoint
av: Any = batteries.averaging
da: Any = batteries.data
di: Any = batteries.distributed
pr: Any = batteries.predictions
tr: Any = batteries.training
ROOMS = (ck, av, da, di, pr, tr)
NAN = math.nan


def model() -> Any:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def made(epoch: Any = 1, **more: Any) -> Any:
    return ck.make_checkpoint("train", epoch, nn.Linear(2, 1), **more)


def manager(epochs: int = 0, **options: Any) -> Any:
    found = ck.CheckpointManager("logs", **options)
    for epoch in range(1, epochs + 1):
        found.process(0.5, epoch, made(epoch))
    return found


def with_metrics(text: str) -> str:
    Path("bad").mkdir()
    Path("bad/metrics.json").write_text(text)
    return "bad"


def with_shards() -> str:
    Path("shards/last.dcp").mkdir(parents=True)
    Path("shards/last.dcp/index.pth").touch()
    return "shards"


def led_out() -> str:
    Path("out").mkdir()
    Path("out/metrics.json").symlink_to("../a.pth")
    return "out"


def closed() -> Any:
    found = manager(background=True)
    found.close()
    return found


def with_users_file() -> Any:
    found = manager(1)
    ck.save_checkpoint(made(2), "logs/exp_2.pth")
    return found


def with_directory() -> Any:
    found = manager(background=True)
    Path("logs/exp_1.pth").mkdir(parents=True)
    return found


def swapped(call: Callable[[Any, Any], object], kind: Any) -> None:
    average = kind(own := model())
    with average.swapped(own):
        call(average, own)


def nested(average: Any, own: Any) -> None:
    with average.swapped(own):
        pass


def failing(error: BaseException) -> Any:
    def fail(*_: Any) -> None:
        raise error

    return fail


def batches(steps: int = 1, **options: Any) -> Iterator[Any]:
    """Windows of a pass, with an optimizer, after each backward pass."""
    own = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
    for x, window in tr.accumulate([torch.ones(4, 2)] * steps, own, steps, **options):
        window.backward(own(x).mean())
        yield SimpleNamespace(window=window, optimizer=optimizer, model=own)


def first(**options: Any) -> Any:
    return next(batches(**options))


def scaled() -> Any:
    return first(scaler=torch.amp.GradScaler("cpu"))


def stepped_other() -> None:
    own = scaled()
    own.window.clip(own.optimizer, 1.0)
    own.window.step(torch.optim.SGD(nn.Linear(2, 1).parameters()))


def loaded_within() -> None:
    loader = da.DataLoader(range(4))
    for _ in loader:
        loader.load_state_dict(loader.state_dict())


def counted() -> None:
    with tr.Throughput().count_flops(1):
        pass


def rates(loss: Any) -> Any:
    own = nn.Linear(2, 1)
    return tr.lr_range_test(lambda: loss, own, torch.optim.SGD(own.parameters()))


def predicted(**arrays: Any) -> Any:
    found = pr.Predictions(1)
    found.add([0], **arrays)
    return found


def set_up(**options: Any) -> None:
    with di.setup(**options):
        pass


def with_rank(call: Callable[[], object]) -> None:
    """A call in a process that a launcher has started, with a rank alone."""
    os.environ["RANK"] = "0"
    try:
        call()
    finally:
        del os.environ["RANK"]


def of_two(call: Callable[[], object]) -> None:
    os.environ["WORLD_SIZE"] = "2"
    try:
        with_rank(call)
    finally:
        del os.environ["WORLD_SIZE"]


class Random(torch.utils.data.Dataset[bytes]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> bytes:
        return os.urandom(8)


class Endless(torch.utils.data.IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(9))


RAISES: dict[str, Callable[[], object]] = {
    "CheckpointManager TypeError": lambda: manager(metric="accuracy"),
    "CheckpointManager ValueError": lambda: ck.CheckpointManager(with_metrics("{}")),
    "CheckpointManager NotADirectoryError": lambda: ck.CheckpointManager("a.pth"),
    "CheckpointManager PermissionError": lambda: ck.CheckpointManager(led_out()),
    "CheckpointManager.process ValueError": lambda: manager().process(0.5, 2, made(1)),
    "CheckpointManager.process KeyError": lambda: manager().process({"other": 0.5}, 1, made(1)),
    "CheckpointManager.process TypeError": lambda: manager().process("0.5", 1, made(1)),
    "CheckpointManager.process CheckpointError": lambda: with_users_file().process(1, 2, made(2)),
    "CheckpointManager.process OSError": lambda: ck.CheckpointManager("a.pth/b").process(
        1, 1, made()
    ),
    "CheckpointManager.process RuntimeError": lambda: closed().process(0.5, 1, made()),
    "CheckpointManager.wait Exception": lambda: (
        own := with_directory(), own.process(0.5, 1, made()), own.wait(),
    ),
    "consolidate CheckpointError": lambda: ck.consolidate("a.pth", "b.pth"),
    "consolidate OSError": lambda: (
        manager(1, sharded=True), ck.consolidate("logs/last.dcp", "no/b.pth"),
    ),
    "export_safetensors FileNotFoundError": lambda: ck.export_safetensors("no.pth", "b"),
    "export_safetensors CheckpointError": lambda: ck.export_safetensors("a.pth", "b", key="ema"),
    "export_safetensors ValueError": lambda: ck.export_safetensors("a.pth", "a.pth"),
    "export_safetensors OSError": lambda: ck.export_safetensors("a.pth", "."),
    "export_safetensors ModuleNotFoundError": lambda: ck.export_safetensors("a.pth", "b"),
    "latest NotADirectoryError": lambda: ck.latest("a.pth"),
    "load_checkpoint FileNotFoundError": lambda: ck.load_checkpoint("no.pth"),
    "load_checkpoint TypeError": lambda: ck.load_checkpoint("a.pth", strict="no"),
    "load_checkpoint CheckpointError": lambda: ck.load_checkpoint("a.pth", model()),
    "load_checkpoint ValueError": lambda: ck.load_checkpoint("a.pth", map_location="gpu"),
    "load_checkpoint ModuleNotFoundError": lambda: ck.load_checkpoint("a.safetensors"),
    "make_checkpoint TypeError": lambda: ck.make_checkpoint("train", 1, model),
    "make_checkpoint ValueError": lambda: made(path=nn.Linear(1, 1)),
    "peek FileNotFoundError": lambda: ck.peek("no.pth"),
    "peek CheckpointError": lambda: ck.peek("cut.pth"),
    "peek ModuleNotFoundError": lambda: ck.peek("a.safetensors"),
    "read_checkpoint FileNotFoundError": lambda: ck.read_checkpoint("no.pth"),
    "read_checkpoint ValueError": lambda: ck.read_checkpoint("a.pth", "gpu"),
    "read_checkpoint CheckpointError": lambda: ck.read_checkpoint("cut.pth"),
    "read_checkpoint ModuleNotFoundError": lambda: ck.read_checkpoint("a.safetensors"),
    "read_note FileNotFoundError": lambda: ck.read_note("no.pth"),
    "resume CheckpointError": lambda: (manager(1), ck.resume("logs", model())),
    "resume TypeError": lambda: ck.resume("logs", 3),
    "resume ValueError": lambda: ck.resume("logs", map_location="gpu"),
    "resume NotADirectoryError": lambda: ck.resume("a.pth"),
    "save_checkpoint TypeError": lambda: ck.save_checkpoint({"a": print}, "b.pth"),
    "save_checkpoint ValueError": lambda: ck.save_checkpoint({}, "b.pth", note={"a": "a" * 70_000}),
    "save_checkpoint FileNotFoundError": lambda: ck.save_checkpoint({}, "no/b.pth"),
    "save_checkpoint OSError": lambda: ck.save_checkpoint({}, "."),
    "share_checkpoint CheckpointError": lambda: ck.share_checkpoint(with_shards()),
    "share_checkpoint NotADirectoryError": lambda: ck.share_checkpoint("a.pth"),
    "EMA ValueError": lambda: av.EMA(model(), decay=2),
    "EMA TypeError": lambda: av.EMA(model(), update_every=0.5),
    "SWA ValueError": lambda: av.SWA(model(), buffers="no"),
    **{
        f"{kind.__name__}.{method} {error}": call
        for kind in (av.EMA, av.SWA)
        for method, error, call in (
            ("update", "ValueError", lambda k=kind: k(model()).update(nn.Linear(2, 1))),
            ("update", "RuntimeError", lambda k=kind: swapped(lambda a, m: a.update(m), k)),
            ("swapped", "ValueError", lambda k=kind: nested(k(model()), nn.Linear(2, 1))),
            ("swapped", "RuntimeError", lambda k=kind: swapped(nested, k)),
            (
                "load_state_dict",
                "RuntimeError",
                lambda k=kind: k(model()).load_state_dict(k(nn.Linear(2, 1)).state_dict()),
            ),
        )
    },
    "average_checkpoints FileNotFoundError": lambda: av.average_checkpoints(["no.pth"]),
    "average_checkpoints ValueError": lambda: av.average_checkpoints([]),
    "average_checkpoints TypeError": lambda: av.average_checkpoints(["a.pth"], ["1"]),
    "average_checkpoints CheckpointError": lambda: av.average_checkpoints(["cut.pth"]),
    "best_checkpoints ValueError": lambda: av.best_checkpoints(with_metrics("{"), 1),
    "best_checkpoints TypeError": lambda: av.best_checkpoints("no", 0.5),
    "best_checkpoints FileNotFoundError": lambda: av.best_checkpoints("no", 1),
    "greedy_soup TypeError": lambda: av.greedy_soup(["a.pth"], lambda _: 1.0),
    "greedy_soup ValueError": lambda: av.greedy_soup(
        ["a.pth"], lambda _: NAN, metric_minimization=True
    ),
    "greedy_soup Exception": lambda: av.greedy_soup(
        ["no.pth"], lambda _: 1.0, metric_minimization=True
    ),
    "save_average ValueError": lambda: av.save_average(["a.pth"], "b.pth", loader=[]),
    "save_average RuntimeError": lambda: av.save_average(["a.pth"], "b.pth", model=model()),
    "save_average Exception": lambda: av.save_average(["no.pth"], "b.pth"),
    "update_bn ValueError": lambda: av.update_bn(model(), []),
    "update_bn Exception": lambda: av.update_bn(model(), map(failing(KeyError()), [1])),
    "DataLoader ValueError": lambda: da.DataLoader([1], in_order=False),
    "DataLoader TypeError": lambda: da.DataLoader([1], batches_per_pass=0.5),
    "DataLoader.check ValueError": lambda: da.DataLoader(Random()).check(),
    "DataLoader.check TypeError": lambda: da.DataLoader(Endless()).check(),
    "DataLoader.set_epoch TypeError": lambda: da.DataLoader([1]).set_epoch(0.5),
    "DataLoader.set_epoch ValueError": lambda: da.DataLoader(
        Endless(), batches_per_pass=2
    ).set_epoch(3),
    "DataLoader.load_state_dict ValueError": lambda: da.DataLoader([1]).load_state_dict(
        da.DataLoader([1, 2]).state_dict()
    ),
    "DataLoader.load_state_dict RuntimeError": loaded_within,
    "Shuffle ValueError": lambda: da.Shuffle(-1, (0,)),
    "Shuffle TypeError": lambda: da.Shuffle(3, (0.5,)),
    "Shuffle.__call__ IndexError": lambda: da.Shuffle(5, (0,))(np.array([5])),
    "Shuffle.__call__ TypeError": lambda: da.Shuffle(5, (0,))([0.5]),
    **{
        f"{type(p).__name__}.load_state_dict {error}": functools.partial(p.load_state_dict, state)
        for p in (da.DataLoader([1]), tr.StepPolicy(), di.PerRank(b.AverageMeter()),
                  av.EMA(model()), av.SWA(model()))
        for error, state in (("KeyError", {}), ("TypeError", None))
    },
    "LearningRates.plot ModuleNotFoundError": lambda: tr.LearningRates([1], [1]).plot(),
    "StepPolicy ValueError": lambda: tr.StepPolicy("stop"),
    "StepPolicy TypeError": lambda: tr.StepPolicy(history=0.5),
    "StepPolicy.accepts FloatingPointError": lambda: tr.StepPolicy().accepts(NAN),
    "StepPolicy.accepts TypeError": lambda: tr.StepPolicy().accepts(None),
    "Throughput ValueError": lambda: tr.Throughput(peak_flops=0),
    "Throughput TypeError": lambda: tr.Throughput(peak_flops="1e12"),
    "Throughput.count_flops ValueError": counted,
    "Throughput.count_flops TypeError": lambda: tr.Throughput().count_flops("2").__enter__(),
    "Throughput.update TypeError": lambda: tr.Throughput().update("2"),
    "Window.backward ValueError": lambda: first().window.backward(torch.ones(2)),
    "Window.backward TypeError": lambda: first().window.backward(0.5),
    "Window.clip ValueError": lambda: (own := first()).window.clip(own.optimizer, -1),
    "Window.clip RuntimeError": lambda: (own := first(steps=2)).window.clip(own.optimizer, 1),
    "Window.clip TypeError": lambda: (own := scaled()).window.clip(own.model.parameters(), 1),
    "Window.step TypeError": lambda: first().window.step(),
    "Window.step RuntimeError": stepped_other,
    "accumulate ValueError": lambda: list(tr.accumulate(["text"], model(), 2)),
    "accumulate TypeError": lambda: tr.accumulate([], model(), 0.5),
    "find_batch_size ValueError": lambda: tr.find_batch_size(print, 0),
    "find_batch_size TypeError": lambda: tr.find_batch_size(print, 0.5),
    "find_batch_size RuntimeError": lambda: tr.find_batch_size(failing(MemoryError()), 1),
    "find_batch_size Exception": lambda: tr.find_batch_size(failing(KeyError()), 8),
    "log_checksums TypeError": lambda: tr.log_checksums("run", 1, model(), object()),
    "lr_range_test ValueError": lambda: rates(NAN),
    "lr_range_test TypeError": lambda: rates(None),
    "parameter_groups TypeError": lambda: tr.parameter_groups(model(), "0.1"),
    "parameter_groups ValueError": lambda: tr.parameter_groups(model(), 0.1, no_decay=["no"]),
    "PerRank TypeError": lambda: di.PerRank(3),
    "PerRank.load_state_dict ValueError": lambda: di.PerRank(
        b.AverageMeter()
    ).load_state_dict({"ranks": [1, 2]}),
    "all_reduce TypeError": lambda: di.all_reduce("1"),
    "all_reduce ValueError": lambda: di.all_reduce(1, "median"),
    "broadcast TypeError": lambda: di.broadcast(1, "0"),
    "barrier TypeError": lambda: di.barrier("dp"),
    "barrier RuntimeError": lambda: of_two(di.barrier),
    "local_rank RuntimeError": lambda: of_two(di.local_rank),
    "rank ValueError": lambda: with_rank(di.rank),
    "setup ValueError": lambda: set_up(timeout="ten"),
    "setup TypeError": lambda: set_up(timeout=[10]),
    "Predictions ValueError": lambda: pr.Predictions(1, "keep"),
    "Predictions TypeError": lambda: pr.Predictions(0.5),
    "Predictions.add IndexError": lambda: pr.Predictions(0).add([0], a=[1]),
    "Predictions.add ValueError": lambda: predicted(a=[1, 2]),
    "Predictions.add Exception": lambda: predicted(a=[lambda: 1]),
    "Predictions.gather ValueError": lambda: pr.Predictions(1).gather(),
    "Predictions.gather TypeError": lambda: pr.Predictions(0).gather(dst=0.5),
    "Predictions.save ValueError": lambda: predicted(a=[1]).save("a.csv"),
    "Predictions.save TypeError": lambda: predicted(a=[1]).save("a.npy"),
    "Predictions.save ModuleNotFoundError": lambda: predicted(a=[1]).save("a.parquet"),
    "Predictions.save OSError": lambda: predicted(a=[1]).save("no/a.parquet"),
    "load FileNotFoundError": lambda: pr.load("no.npy"),
    "load OSError": lambda: pr.load("."),
    "load ValueError": lambda: pr.load("cut.npy"),
    "load ModuleNotFoundError": lambda: pr.load("cut.parquet"),
}  # fmt: skip
# They need several ranks: tests of collectives, of sharded models and of `setup` have them.
OF_RANKS = {
    "all_gather Exception", "all_gather RuntimeError", "all_reduce RuntimeError",
    "broadcast Exception", "broadcast RuntimeError", "broadcast ValueError", "barrier ValueError",
    "setup TimeoutError",
    "setup RuntimeError", "accumulate RuntimeError", "load_checkpoint RuntimeError",
    "resume RuntimeError", "share_checkpoint OSError",
}  # fmt: skip


def parts(whole: bool = False) -> Iterator[tuple[str, Any]]:
    """All public functions, classes and methods of these rooms, or of all, with their names."""
    named = [(name, getattr(b, name)) for name in b.__all__ if name != "t2d"]
    rooms = [value for _, value in named if inspect.ismodule(value)] if whole else ROOMS
    public = {name: vars(room)[name] for room in rooms for name in room.__all__}
    public |= {name: each for name, each in named if whole}
    for name, value in public.items():
        yield name, value
        for kind in value.__mro__ if inspect.isclass(value) else ():
            own = vars(kind).items() if kind.__module__.startswith("batteries") else ()
            yield from ((f"{name}.{n}", v) for n, v in own if n[0] != "_" or n == "__call__")


def entries(part: Any) -> list[str]:
    _, _, told = (inspect.getdoc(part) or "").partition("\nRaises:\n")
    named = re.findall(r"^ {4}(\w[\w, ]*):", told, re.MULTILINE)
    return [error for each in named for error in each.split(", ")]


def raised(part: Any) -> set[str]:
    """The errors in `raise` statements of a function, or of the constructor of a class."""
    own = vars(part).get("__init__") if inspect.isclass(part) else inspect.unwrap(part)
    if not inspect.isfunction(own) or "batteries" not in own.__code__.co_filename:  # a dataclass's
        return set()
    tree = ast.parse(textwrap.dedent(inspect.getsource(own)))
    calls = (each.exc for each in ast.walk(tree) if isinstance(each, ast.Raise))
    names = {ast.unparse(call.func) for call in calls if isinstance(call, ast.Call)}
    known = vars(builtins) | own.__globals__
    return {kind.__name__ for name in names for kind in [known[name]] if isinstance(kind, type)}


def test_every_error_of_a_function_is_documented() -> None:
    """What a public function itself raises is in its `Raises:`, or a base class of it is."""
    for place, part in parts(whole=True):
        for name in raised(part):
            kind: Any = vars(builtins).get(name) or vars(ck)[name]
            known = {each.__name__ for each in kind.__mro__}
            assert known & {*entries(part)}, f"{place} raises {name}"


def test_every_entry_has_a_call() -> None:
    """What `Raises:` names is in the table, or needs several ranks."""
    documented = {f"{place} {error}" for place, part in parts() for error in entries(part)}
    assert documented == RAISES.keys() | OF_RANKS


def test_every_entry_is_raised(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each call raises the error of its entry, and no subclass that has an entry of its own."""
    ck.save_checkpoint(made(), "a.pth")
    data = Path("a.pth").read_bytes()
    files = {"a.pth": data, "a.safetensors": data} | {
        f"cut.{end}": data[9:-99] for end in ("pth", "npy", "parquet")
    }
    for entry, call in RAISES.items():
        name, kind = entry.split()
        monkeypatch.chdir(tmp_path_factory.mktemp("entry"))
        for path, data in files.items():
            Path(path).write_bytes(data)
        with monkeypatch.context() as without:
            for module in ("safetensors.torch", "polars", "matplotlib.figure"):
                if kind == "ModuleNotFoundError":
                    without.setitem(sys.modules, module, None)
            try:
                call()
            except Exception as error:
                found = {each.__name__ for each in type(error).__mro__}
                exact = type(error).__name__
            else:
                found, exact = set(), "nothing"
        assert kind in found, f"{entry}, but {exact} was raised"
        assert exact == kind or f"{name} {exact}" not in {*RAISES}, f"{entry}, but {exact}"
