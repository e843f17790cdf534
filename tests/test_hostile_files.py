"""Files made by an enemy: whatever is read of them ends soon, and reaches nothing outside."""

from __future__ import annotations

import os
import pickle
import re
import resource
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hostile
import pytest
from click.testing import CliRunner
from sweeps import sweep
from torch import nn
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from batteries import (
    CheckpointError,
    CheckpointManager,
    JsonLinesLogger,
    load_checkpoint,
    make_checkpoint,
    resume,
    save_checkpoint,
)
from batteries.averaging import average_checkpoints
from batteries.checkpoint import consolidate, latest, peek, read_checkpoint
from batteries.checkpoint._read_shards import digest_of
from batteries.cli import main
from batteries.loggers import read_lines
from batteries.predictions import load
from batteries.scoreboard import read_runs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root, to make a device")
LONGEST = 20  # seconds of the processor for one call; to wait for something takes none
NEVER = 300  # seconds, on a busy machine
MEMORY = 2**30  # bytes


@pytest.fixture(autouse=True)
def _nothing_outside_is_touched() -> Iterator[None]:
    """And nothing takes for ever, or all memory."""
    folder = hostile.outside(Path())
    before, used = hostile.snapshot(folder), memory()
    numbers = signal.SIGALRM, signal.SIGPROF
    previous = [signal.signal(number, _too_long) for number in numbers]
    yield
    for number, handler in zip(numbers, previous, strict=True):
        signal.signal(number, handler)
    assert hostile.snapshot(folder) == before
    assert memory() - used < MEMORY


def _too_long(*_: object) -> None:
    raise AssertionError("it takes too long")


def memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10


@contextmanager
def bounded() -> Iterator[None]:
    signal.alarm(NEVER)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)


def command(*words: str, known: bool = True) -> str:
    """The output of a command, which ends by itself; of its errors each is one line."""
    with bounded():
        result = CliRunner().invoke(main, words)
    assert result.exit_code in (0, 1, 2), (words, result.output)
    assert result.exception is None or isinstance(result.exception, SystemExit), words
    assert not known or result.exit_code == 0, (words, result.output)
    assert hostile.SECRET not in result.output
    assert "\x1b" not in result.output
    return str(result.stdout)


def refused(read: Callable[[Path], Any], path: Path, error: Any = CheckpointError) -> None:
    """Read a file, or refuse it as documented."""
    with bounded(), suppress(error), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read(path)


@pytest.mark.parametrize("part", [0, sweep(1)])
def test_runs(part: int) -> None:
    """Each bad file is told of, all other runs are shown, and no page shows what lies elsewhere."""
    logdir = Path("runs")
    everything = hostile.make_runs(logdir)
    made = everything[part::2]
    for path in {*everything} - {*made}:
        shutil.rmtree(path)
    hostile.make_run(logdir / "good")
    begun = time.process_time()
    with bounded():
        told = {run.name: run.problems for run in read_runs(logdir)}
    assert len(told) == len(made) + 1
    assert not told["good"]
    for name in ("run.json", "scores.json", "metrics.json"):
        for kind in ("pipe", "link-to-a-secret", "sparse", "deep"):
            if logdir / f"{name}-{kind}" in made:
                assert any(name in problem for problem in told[f"{name}-{kind}"]), (name, kind)
    command("gaps", "runs")
    command("report", "runs", "-o", "report.html")
    page = Path("report.html").read_text()
    assert hostile.SECRET not in page
    assert page.count("<script") == 2
    assert (time.process_time() - begun) / len(made) < 1
    assert len(page) < 10_000_000


def test_many_values() -> None:
    """A record with more values than memory should be spent on is not read."""
    hostile.make_run(Path("runs/001"), "run.json", hostile.written(hostile.MANY_VALUES))
    with bounded():
        [run] = read_runs("runs")
    assert "more than 4,000,000 values" in run.problems[0]


@pytest.mark.parametrize("part", [0, sweep(1), sweep(2), sweep(3)])
def test_each_run(part: int) -> None:
    """Commands about one run, and a logger in it, end, and write into it at most."""
    made = hostile.make_runs(Path("runs"))
    things = [path for path in made if kind_of(path) in hostile.THINGS]
    for path in [*things[part::4], *made[27 * part :: 108]]:
        if path.exists():
            use(path)


def kind_of(path: Path) -> str:
    """What is bad about its file."""
    return path.name.partition("-")[2].removeprefix("1.patch-")


def use(path: Path) -> None:
    """Call all commands on a run."""
    if not Path("good").exists():
        hostile.make_run(Path("good/run"))
    Path("one").mkdir()
    only = str(path.rename("one/run"))
    command("runs", "one")
    command("runs", "one", "--csv")
    command("compare", "good/run", only, known=False)
    command("show", only, known=False)
    command("rerun", only, known=False)
    command("prune", "one", "--keep-best", "0", "--yes", known=False)
    command("export", "one", "--metrics", "-o", "values.csv", known=False)
    command("average", only, "--best", "1", "-o", "average.pth", known=False)
    command("score", only, "--test", "0.5", known=False)
    if path.name.startswith("metrics.jsonl"):
        log(only)
    shutil.rmtree("one")
    assert not Path("average.pth").exists()


def log(logdir: str) -> None:
    with bounded(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(OSError):
            list(read_lines(logdir))
        for go_on in ({"run_id": "a", "step": 0}, None):
            with JsonLinesLogger(logdir) as logger:
                if go_on:
                    logger.load_state_dict(go_on)
                logger.log_metrics({"loss": 0.5}, 1)


def test_pickles() -> None:
    """A checkpoint that would run code, or be walked through for ever, is refused in time."""
    path, begun, counts = Path("hostile.pth"), time.process_time(), 0
    for pickled in hostile.pickles().values():
        for bare in (False, True):
            hostile.write_pickle(path, pickled, bare)
            for read in (peek, read_checkpoint, average_of):
                refused(read, path)
            command("inspect", str(path), known=False)
            counts += 1
    assert (time.process_time() - begun) / counts < 1
    assert not Path("outside/run").exists()


def average_of(path: Path) -> Any:
    return average_checkpoints([path])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npy", ".parquet", ".csv"])
def test_things(suffix: str) -> None:
    """What is no file is refused by its name, and not waited for."""
    save_checkpoint(make_checkpoint("train", 1, nn.Linear(1, 1)), "good.pth")
    for kind, thing in hostile.THINGS.items():
        Path("one/run").mkdir(parents=True)
        path = Path("one/run", f"last{suffix}")
        thing(path)
        if suffix in (".pth", ".safetensors"):
            for read in (peek, read_checkpoint, load_checkpoint, average_of):
                refused(read, path, (CheckpointError, OSError))
            command("inspect", str(path), known=False)
            refused(latest, path.parent, OSError)
            refused(lambda path: resume(path.parent), path, (CheckpointError, OSError))
        else:
            refused(load, path, (ValueError, OSError))
            command("blend", str(path), "-o", "blend.csv", known=False)
        shutil.rmtree("one")
        assert kind


@pytest.mark.parametrize("header", [2**63, 10**8 + 1, 0, 2])
def test_headers_of_safetensors(header: int) -> None:
    """The length of a header is held against the file before memory is taken for it."""
    path = Path("a.safetensors")
    path.write_bytes(header.to_bytes(8, "little") + b"{}")
    os.truncate(path, hostile.SPARSE)
    for read in (peek, read_checkpoint, average_of):
        refused(read, path)


# ---------------------------------------------------------------- directories that are gone on with


def save(logdir: Path, epoch: int, sharded: bool = False) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        manager = CheckpointManager(logdir, sharded=sharded, go_on=True)
        manager.process(1 / epoch, epoch, make_checkpoint("train", epoch, nn.Linear(1, 1)))


def saved(logdir: Path) -> str:
    """Open a directory and save into it; the error, if that is refused."""
    with bounded():
        try:
            save(logdir, 5)
        except (OSError, ValueError) as error:
            return str(error)
    return ""


def test_notes() -> None:
    """Whatever a checkpoint says about itself, names of files are made of numbers alone."""
    for epoch in (1, 2):
        save(Path("good"), epoch)
    checkpoint = make_checkpoint("train", 3, nn.Linear(1, 1))
    for number, note in enumerate(hostile.notes()):
        logdir = hostile.copied(Path("good"), Path("one", str(number)))
        hostile.save_noted(checkpoint, logdir / "last.pth", note)
        if number % 2:
            (logdir / "metrics.json").unlink()
        assert saved(logdir) == "", note
        names = {path.name for path in logdir.iterdir()}
        own = {name for name in names if re.fullmatch(r"exp_-?\d{1,18}\.pth", name)}
        assert names - own == {"last.pth", "best.pth", "metrics.json"}, note


def test_histories() -> None:
    """Whatever metrics.json says or is, a manager writes and removes in its directory only."""
    for epoch in (1, 2):
        save(Path("good"), epoch)
    texts = hostile.contents()["metrics.json"].values()
    things = [*hostile.THINGS.values(), *map(hostile.written, texts)]
    for number, thing in enumerate(things):
        logdir = hostile.copied(Path("good"), Path("one", str(number)))
        (logdir / "metrics.json").unlink()
        thing(logdir / "metrics.json")
        saved(logdir)


class Code:
    """What describes a sharded checkpoint, and makes a directory when it is read."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("outside/run",)


@pytest.mark.parametrize("kind", ["code", "bytes", "elsewhere", "names", "shapes", "whole"])
def test_sharded_checkpoints(kind: str) -> None:
    """A directory of shards, sealed by its maker, runs no code and reads no file outside of it."""
    save(Path("good"), 1, sharded=True)
    folder, described = Path("good/last.dcp").resolve(), Path("good/last.dcp/.metadata")
    index, metadata = read_checkpoint(folder / "index.pth"), pickle.loads(described.read_bytes())
    if kind == "code":
        metadata = Code()
    elif kind == "bytes":  # of which the engine would make any object
        metadata.state_dict_metadata["model_state_dict.weight"] = BytesStorageMetadata()
    elif kind == "elsewhere":
        for each in metadata.storage_data.values():
            each.relative_path = "../../../outside/0_0.distcp"
    elif kind == "names":
        index["files"]["../../../outside/pipe"] = "0" * 32
    elif kind == "shapes":
        index["shapes"] = {"model_state_dict.weight": [2**62, 2**62]}
    described.write_bytes(pickle.dumps(metadata))
    index["files"][".metadata"] = digest_of(described)
    save_checkpoint(index, folder / "index.pth")
    outcomes = []
    for read in (read_checkpoint, peek, lambda path: consolidate(path, "out.pth")):
        with bounded():
            try:
                read(Path("good/last.dcp"))
            except CheckpointError as error:
                outcomes.append(str(error))
    assert len(outcomes) == {"whole": 0, "names": 3, "shapes": 3}.get(kind, 2), outcomes
    assert not Path("outside/run").exists()


@pytest.mark.parametrize("name", ["last.pth", "best.pth", "exp_1.pth", "exp_9.pth", "metrics.json"])
def test_names_that_lead_elsewhere(name: str) -> None:
    """What stands for a checkpoint may be anything: nothing is read or written through it."""
    save(Path("good"), 1)
    for kind, thing in hostile.THINGS.items():
        logdir = hostile.copied(Path("good"), Path("one", kind))
        (logdir / name).unlink(missing_ok=True)
        thing(logdir / name)
        told = saved(logdir)
        leads_out = kind.startswith("link-to") and kind != "link-to-nowhere"
        assert not leads_out or told, kind
