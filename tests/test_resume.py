"""A run that is killed anywhere and started again ends with the bits of one that never was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from killable import Kill, run, run_torchrun, struck
from ranks import run_ranks
from sweeps import sweep
from torch import nn
from torch.utils.data import Dataset

from batteries import (
    AverageMeter,
    CheckpointError,
    CheckpointManager,
    check_in_sync,
    distribute,
    distributed,
    load_checkpoint,
    make_checkpoint,
    resume,
    save_checkpoint,
)
from batteries.checkpoint import _sharing, latest, share_checkpoint
from batteries.data import DataLoader


@cache
def undisturbed(world_size: int) -> str:
    with TemporaryDirectory() as folder:
        return run(world_size, Path(folder, "whole"), [])


@pytest.mark.parametrize("world_size", [1, sweep(2), 3, sweep(4)])
def test_killed_and_started_again(world_size: int) -> None:
    """Ranks killed and told to stop, at several steps, and all started again: the same bits."""
    last, middle = world_size - 1, world_size // 2
    kills: list[Kill] = [(3, 0, "SIGTERM"), (7, middle, "SIGKILL"), (2, last, "SIGKILL")]
    kills = kills if world_size < 4 else kills[:2]  # each start of four takes long
    assert run(world_size, Path("killed"), kills) == undisturbed(world_size)
    assert struck(Path("killed")) == len(kills)


@pytest.mark.parametrize(
    ("world_size", "kills"),
    [(2, [(6, 0, "SIGTERM"), (3, 1, "SIGKILL")]), sweep(3, [(7, 2, "SIGKILL")])],
)
def test_restarted_by_torchrun(world_size: int, kills: list[Kill]) -> None:
    """torchrun starts a run again, whose ranks were killed and told to stop: the same bits."""
    assert run_torchrun(world_size, Path("killed"), kills) == undisturbed(world_size)
    assert struck(Path("killed")) == len(kills)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("workers", "kills"), [(2, [(50, 0, "worker")]), sweep(3, [])])
def test_workers_and_their_deaths(workers: int, kills: list[Kill]) -> None:
    """With workers, and after one of them is killed: the same bits."""
    assert run(1, Path("killed"), kills, workers) == undisturbed(1)
    assert struck(Path("killed")) == len(kills)


@pytest.mark.filterwarnings("ignore:.*goes on from its beginning")
@pytest.mark.parametrize("name", ["optimizer", "scheduler", "scaler", "loader", "ema", "meter"])
def test_each_part_is_needed(name: str) -> None:
    """Without any one of the parts, a killed run ends otherwise: the comparison would notice."""
    assert run(1, Path("killed"), [(3, 0, "SIGKILL")], 0, (name,)) != undisturbed(1)


# ---------------------------------------------------------------- resume


def saved(epoch: int, directory: str | Path = "logs", **parts: Any) -> nn.Linear:
    model = nn.Linear(2, 1)
    manager = CheckpointManager(directory, metric_minimization=False)
    manager.process(epoch, epoch, make_checkpoint("train", epoch, model, **parts))
    return model


def test_a_fresh_start() -> None:
    """Where there is no checkpoint, nothing is loaded and nothing created."""
    assert resume("logs", nn.Linear(2, 1)) is None
    assert not Path("logs").exists()


def test_the_newest_good_one() -> None:
    """A damaged checkpoint is warned about and the one before it is loaded."""
    models = [saved(epoch) for epoch in (1, 2)]
    for name in ("last", "exp_2", "best"):
        shutil.copyfile(f"logs/{name}.pth", "copy")
        Path(f"logs/{name}.pth").unlink()
        Path(f"logs/{name}.pth").write_bytes(Path("copy").read_bytes()[:-1])
    model = nn.Linear(2, 1)
    with pytest.warns(UserWarning, match=r"an older one is taken"):
        last = resume("logs", model)
    assert last is not None
    assert last["epoch"] == 1
    assert torch.equal(model.weight, models[0].weight)


def test_nothing_good() -> None:
    """When every checkpoint is damaged it is an error: a fresh start would overwrite the run."""
    saved(1)
    for path in Path("logs").glob("*.pth"):
        path.write_bytes(b"")
    with (
        pytest.raises(CheckpointError, match="none of the 3 checkpoints in logs can be read"),
        pytest.warns(UserWarning, match="an older one is taken"),
    ):
        resume("logs", nn.Linear(2, 1))


def test_the_only_one() -> None:
    """A single damaged checkpoint promises no older one."""
    Path("logs").mkdir()
    Path("logs/last.pth").touch()
    told = "the only checkpoint in logs cannot be read; .* logs/last.pth cannot be read as"
    with pytest.raises(CheckpointError, match=told):
        resume("logs", nn.Linear(2, 1))
    with pytest.warns(UserWarning, match="last.pth cannot be read .*; there is no older one"):
        assert latest("logs") is None


def test_a_name_that_leads_nowhere() -> None:
    """A link to a file that is gone counts as damaged: an older checkpoint is loaded."""
    saved(1)
    Path("logs/last.pth").unlink()
    Path("logs/last.pth").symlink_to("lost.pth")
    told = "last.pth is a link to lost.pth, which does not exist; .*; an older one is taken"
    with pytest.warns(UserWarning, match=told):
        last = resume("logs", nn.Linear(2, 1))
    assert last is not None
    assert last["epoch"] == 1


def test_a_missing_object() -> None:
    """A state without an object is a warning, an object without a state an error."""
    saved(1, ema=nn.Linear(1, 1))
    with pytest.warns(
        UserWarning, match=r"logs/last\.pth has ema_state_dict, but resume got no ema="
    ):
        resume("logs", nn.Linear(2, 1))
    with pytest.raises(CheckpointError, match=r"logs/last\.pth has no scaler_state_dict"):
        resume("logs", nn.Linear(2, 1), ema=nn.Linear(1, 1), scaler=AverageMeter())


def resumed_epoch(directory: str) -> Any:
    last = resume(directory, nn.Linear(2, 1))
    return last and last["epoch"]


def test_ranks_agree(tmp_path: Path) -> None:
    """All ranks load the same checkpoint, or raise the same error."""
    assert run_ranks(resumed_epoch, str(tmp_path)) == [None, None]
    saved(3, tmp_path)
    assert run_ranks(resumed_epoch, str(tmp_path)) == [3, 3]
    save_checkpoint({"model_state_dict": {}}, tmp_path / "last.pth")
    for error in run_ranks(resumed_epoch, str(tmp_path)):
        assert "is not in" in str(error)


def read_apart(directory: str, function: str, epochs: tuple[int, int]) -> str:
    """Each rank has a directory of its own under the same name, as on hosts that share nothing."""
    own = Path(directory, f"host-{distributed.rank()}")
    own.mkdir()
    os.chdir(own)
    if epochs[distributed.rank()]:
        torch.manual_seed(epochs[distributed.rank()])
        model = nn.Linear(2, 1)
        Path("logs").mkdir()
        save_checkpoint(make_checkpoint("train", 1, model), "logs/last.pth")
    distributed.barrier()
    model = nn.Linear(2, 1)
    before = model.weight.clone()
    try:
        load_checkpoint("logs/last.pth", model) if function == "load" else resume("logs", model)
    except RuntimeError as error:
        assert torch.equal(model.weight, before)
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("function", "epochs"), [("resume", (1, 2)), ("resume", (1, 0)), ("resume", (0, 1))]
)
def test_hosts_that_share_nothing(function: str, epochs: tuple[int, int], tmp_path: Path) -> None:
    """Ranks that would load different files raise, on all of them, before anything changes."""
    told = run_ranks(read_apart, str(tmp_path), function, epochs)
    what = "logs/last.pth" if all(epochs) else "the directory of resume"
    for text in told:
        assert f"{what} is not the same on all ranks" in text
        assert "on rank 0 on " in text
        assert "on rank 1 on " in text


def test_loading_on_hosts_that_share_nothing(tmp_path: Path) -> None:
    """The later of two ranks that load different files of one name raises."""
    told = run_ranks(read_apart, str(tmp_path), "load", (1, 2))
    assert sorted(map(bool, told)) == [False, True]
    assert "logs/last.pth is not the same on all ranks" in max(told)


def resume_beside_a_cut_copy(directory: str) -> int:
    own = Path(directory, str(distributed.rank()))
    shutil.copytree(Path(directory, "logs"), own)
    if distributed.rank() == 1:
        with Path(own, "last.pth").open("r+b") as file:
            file.truncate(1000)
    os.chdir(own)
    with pytest.warns(UserWarning, match=r"last.pth.*; an older one is taken"):
        last = resume(".", nn.Linear(2, 1))
    assert last is not None
    return int(last["epoch"])


def test_one_host_has_a_cut_copy(tmp_path: Path) -> None:
    """If one rank cannot read a checkpoint, all ranks take the same older one."""
    manager = CheckpointManager(tmp_path / "logs")
    for epoch in (1, 2):
        manager.process(0.5, epoch, make_checkpoint("train", epoch, nn.Linear(2, 1)))
    Path(tmp_path, "logs/exp_2.pth").unlink()
    assert run_ranks(resume_beside_a_cut_copy, str(tmp_path)) == [1, 1]


def resume_what_is_sent(directory: str) -> tuple[str, Any]:
    """Rank 0 is on a host of its own, the others are on another."""
    own = Path(directory, f"host-{min(1, distributed.rank())}")
    if distributed.rank() < 2:
        Path(own, "logs").mkdir(parents=True)
        model = nn.Linear(2, 1)
        torch.nn.init.constant_(model.weight, distributed.rank())
        save_checkpoint(make_checkpoint("train", 1, model), own / "logs/last.pth")
    distributed.barrier()
    os.chdir(own)
    _sharing._PIECE = 1000  # so that a small file is some
    sent = share_checkpoint("logs")
    assert sent is not None
    before = sent.stat().st_ino
    assert share_checkpoint("logs") == sent
    assert sent.stat().st_ino == before  # there was nothing to do
    model = nn.Linear(2, 1)
    resume("logs", model)
    return str(sent), model.weight.tolist()


def test_checkpoints_are_sent_to_other_hosts(tmp_path: Path) -> None:
    """Hosts that share nothing resume from rank 0's checkpoint, once it was sent to them."""
    results = run_ranks(resume_what_is_sent, str(tmp_path), world_size=3)
    assert results == [("logs/last.pth", [[0.0, 0.0]])] * 3


def share_shards(directory: str) -> str:
    manager = CheckpointManager(directory, sharded=True)
    manager.process(0.5, 1, make_checkpoint("train", 1, nn.Linear(2, 1)))
    with pytest.raises(CheckpointError) as caught:
        share_checkpoint(directory)
    return str(caught.value)


def test_shards_are_not_sent(tmp_path: Path) -> None:
    """A sharded checkpoint, of which each host has a part, is refused on all ranks alike."""
    for told in run_ranks(share_shards, str(tmp_path)):
        assert "last.dcp is sharded: put it on a file system that all hosts share" in told


def out_of_sync(change: str) -> None:
    norm = nn.BatchNorm1d(1)
    model = nn.Sequential(nn.Linear(2, 1), norm)
    model.register_buffer("table", torch.ones(2), persistent=False)
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    check_in_sync(distribute(model, "cpu"), step=3)
    if distributed.rank() == 1 and change == "table":
        model.get_buffer("table").add_(1)
    if distributed.rank() == 1 and change == "more":
        model.register_buffer("more", torch.ones(2))
    if distributed.rank() == 1 and change == "bias":
        norm.bias.data += 1e-6
    check_in_sync(model, step=distributed.rank() if change == "step" else 3)


def test_check_in_sync_of_other_models() -> None:
    """A tensor that only one rank has is an error on all of them."""
    for error in run_ranks(out_of_sync, "more"):
        assert str(error).startswith("more is missing on rank 0: all ranks must build")


@pytest.mark.parametrize(
    ("change", "name"), [("bias", "1.bias"), ("step", "step"), ("table", "table")]
)
def test_check_in_sync(change: str, name: str) -> None:
    """The first tensor or number that differs is named, on every rank."""
    for error in run_ranks(out_of_sync, change, world_size=3):
        assert str(error).startswith(
            f"{name} differs between the ranks: it has another value on rank 1"
        )


def test_check_in_sync_of_sparse_tensors() -> None:
    """A sparse buffer is compared by its numbers, too."""
    model = nn.Module()
    model.register_buffer("table", torch.eye(3).to_sparse())
    check_in_sync(model)


class Growing(Dataset[int]):
    """A dataset to which the program adds samples, as in active learning."""

    def __init__(self) -> None:
        self.rows = [0, 1]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> int:
        return self.rows[index]

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = state["rows"]


def test_a_dataset_that_has_grown() -> None:
    """A loader is loaded after its dataset, in whatever order they are passed."""
    dataset, model = Growing(), nn.Linear(1, 1)
    loader = DataLoader(dataset, batch_size=2, shuffle=True)
    dataset.rows += [2, 3, 4]
    first = next(iter(loader)).tolist()
    save_checkpoint(make_checkpoint("train", 1, model, loader=loader, dataset=dataset), "last.pth")

    dataset = Growing()
    loader = DataLoader(dataset, batch_size=2, shuffle=True)
    load_checkpoint("last.pth", model, loader=loader, dataset=dataset)
    assert sorted([*first, *(row for batch in loader for row in batch.tolist())]) == [*range(5)]


class Nodes:
    """A loader of nodes: a state that is asked for begins a pass, from which no load leads away."""

    def __init__(self) -> None:
        self.begun: Any = None
        self.next: dict[str, int] | None = None

    def __iter__(self) -> Iterator[int]:
        if self.begun is None:
            at = (self.next or {"at": 0})["at"]
            self.begun, self.next = iter(range(at, 10)), None
        begun, self.begun = self.begun, None
        return iter(begun)

    def state_dict(self) -> dict[str, int]:
        if self.begun is None:
            self.begun = iter(self)
        return {"at": 3}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state


class Refuses(Nodes):
    def load_state_dict(self, state: dict[str, int]) -> None:
        raise ValueError(f"another data set than at {state['at']}")


def test_loaders_that_begin_when_asked(tmp_path: Path) -> None:
    """No state is asked of a loader before it loads one; what was loaded is undone together."""
    saved = make_checkpoint("train", 1, nn.Linear(1, 1), nodes=Nodes(), other=Nodes())
    save_checkpoint(saved, tmp_path / "last.pth")
    nodes, model = Nodes(), nn.Linear(1, 1)
    with pytest.raises(CheckpointError, match=r"other_state_dict .* fit: another data set"):
        load_checkpoint(tmp_path / "last.pth", model, nodes=nodes, other=Refuses())
    assert vars(nodes) == {"begun": None, "next": None}
    load_checkpoint(tmp_path / "last.pth", model, nodes=nodes)
    assert list(nodes) == [*range(3, 10)]
