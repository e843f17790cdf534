"""Sharded checkpoints: each rank writes its part, and any number of ranks reads the whole."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from sweeps import sweep
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from batteries import (
    CheckpointError,
    CheckpointManager,
    distributed,
    load_checkpoint,
    make_checkpoint,
    save_checkpoint,
)
from batteries.checkpoint import consolidate, latest, peek, read_checkpoint


def network() -> nn.Module:
    """Sizes that do not divide evenly, and a layer that some ranks have no part of."""
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 1))


class Training:
    """A model that is sharded over all ranks, or whole where there is one process."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = network()
        if torch.distributed.is_initialized():
            mesh = init_device_mesh("cpu", (distributed.world_size(),))
            for layer in (self.model[0], self.model[3]):  # type: ignore[index]
                fully_shard(layer, mesh=mesh)
            fully_shard(self.model, mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, 0.5)

    def step(self, epoch: int) -> None:
        """On the same samples on all ranks: then the shards do not change the result."""
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(epoch))
        loss = self.model(x).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()

    def checkpoint(self, epoch: int) -> dict[str, Any]:
        metrics = {"rows": [epoch, (epoch,)]}
        parts = self.model, self.optimizer, self.scheduler
        return make_checkpoint("train", epoch, *parts, metrics=metrics)

    def load(self, path: str | Path) -> dict[str, Any]:
        return load_checkpoint(path, self.model, self.optimizer, self.scheduler)


def whole(value: Any) -> Any:
    """The same with full tensors."""
    if isinstance(value, dict):
        return {key: whole(part) for key, part in value.items()}
    if isinstance(value, list):
        return [whole(part) for part in value]
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def assert_equal(found: Any, expected: Any) -> None:
    assert plain(found) == plain(expected)


def plain(value: Any) -> Any:
    """Tensors as their types and numbers, which can be compared inside dicts and lists."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    return (type(value), value.dtype, value.tolist()) if isinstance(value, Tensor) else value


def train(logdir: str, until: int) -> Any:
    """Go on after the last checkpoint; what the state is in the end."""
    training = Training()
    manager = CheckpointManager(logdir, save_n_best=2, sharded=True)
    done = training.load(manager.last_path)["epoch"] if manager.last_path.exists() else 0
    for epoch in range(done + 1, until + 1):
        training.step(epoch)
        manager.process(1 / epoch, epoch, training.checkpoint(epoch))
    return whole(training.checkpoint(until))


def test_resume(tmp_path: Path) -> None:
    """Cut in two, a sharded training ends with the same bits as in one go."""
    in_one_go = run_ranks(train, str(tmp_path / "one"), 4, world_size=3)
    run_ranks(train, str(tmp_path / "two"), 2, world_size=3)
    in_two = run_ranks(train, str(tmp_path / "two"), 4, world_size=3)
    for found, expected in zip(in_two, in_one_go, strict=True):
        assert_equal(found, expected)


def loaded(path: str) -> Any:
    training = Training()
    checkpoint = training.load(path)
    assert checkpoint["metrics"] == {"rows": [3, (3,)]}
    return whole(training.checkpoint(3))


@pytest.mark.parametrize(("written_by", "read_by"), [(2, (1, 3)), sweep(4, (2, 3))])
def test_another_world_size(written_by: int, read_by: tuple[int, int], tmp_path: Path) -> None:
    """Any number of ranks loads the same state, model, optimizer and schedule."""
    state = run_ranks(train, str(tmp_path), 3, world_size=written_by)[0]
    path = str(tmp_path / "last.dcp")
    for world_size in read_by:
        alone = world_size == 1
        for found in [loaded(path)] if alone else run_ranks(loaded, path, world_size=world_size):
            assert_equal(found, state)


def test_consolidate(tmp_path: Path) -> None:
    """One plain file is made of it, which plain torch.load opens and sharded objects load."""
    state = run_ranks(train, str(tmp_path), 3)[0]
    consolidate(tmp_path / "best.dcp", "best.pth")
    with pytest.raises(CheckpointError, match=r"best\.pth is not a sharded checkpoint; expected"):
        consolidate("best.pth", "again.pth")
    assert_equal(torch.load("best.pth"), state)
    assert_equal(read_checkpoint(tmp_path / "best.dcp"), state)
    for found in run_ranks(loaded, str(Path("best.pth").resolve())):
        assert_equal(found, state)


def train_and_consolidate(logdir: str) -> Any:
    state = train(logdir, 1)
    if distributed.is_main():
        consolidate(Path(logdir, "last.dcp"), Path(logdir, "model.pth"))
    distributed.barrier()
    return state


def test_consolidate_on_one_rank(tmp_path: Path) -> None:
    """Rank 0 alone makes one file at the end of its training; the others wait for it."""
    state = run_ranks(train_and_consolidate, str(tmp_path))[0]
    assert_equal(torch.load(tmp_path / "model.pth"), state)


def test_the_engine_reads_it(tmp_path: Path) -> None:
    """The shards are what torch.distributed.checkpoint writes: it reads them without us."""
    state = run_ranks(train, str(tmp_path), 1)[0]
    found = {"model_state_dict['0.weight']": torch.zeros(7, 5)}
    with pytest.warns(UserWarning, match=r"torch\.distributed is disabled"):
        load(found, storage_reader=FileSystemReader(tmp_path / "last.dcp"))
    assert_equal(found["model_state_dict['0.weight']"], state["model_state_dict"]["0.weight"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_directory(tmp_path: Path) -> None:
    """At rest there are the names, metrics.json, and one directory for each kept epoch."""
    run_ranks(train, str(tmp_path), 4)
    kept = ["best.dcp", "exp_3.dcp", "exp_4.dcp", "last.dcp", "metrics.json", "shards"]
    assert names(tmp_path) == kept
    assert len(names(tmp_path / "shards")) == 2
    assert names(tmp_path / "best.dcp") == [
        ".metadata",
        "__0_0.distcp",
        "__1_0.distcp",
        "index.pth",
    ]
    assert (tmp_path / "last.dcp").samefile(tmp_path / "exp_4.dcp")
    tmp_path.rename(tmp_path.with_name("moved"))  # the links hold
    assert read_checkpoint(tmp_path.with_name("moved") / "best.dcp")["epoch"] == 4


def test_foreign_folders_stay() -> None:
    """A folder that happens to be called shards loses nothing, here or beside a plain manager."""
    Path("logs/shards/mine").mkdir(parents=True)
    save_one("logs")
    CheckpointManager("logs")
    CheckpointManager("logs", sharded=True)
    assert Path("logs/shards/mine").exists()


def save_one(logdir: str | Path, epoch: int = 1, **values: Any) -> Path:
    manager = CheckpointManager(logdir, sharded=True)
    manager.process(1 / epoch, epoch, {"epoch": epoch, **values})
    return manager.last_path


def test_every_kind_of_value() -> None:
    """Whatever a file can hold comes back, one object at two places too."""
    shared = torch.arange(6.0).reshape(2, 3).t()
    values: dict[str, Any] = {
        "shared": [shared, {"again": shared}],
        "empty": torch.empty(0, 2),
        "number": torch.tensor(3, dtype=torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "complex": torch.randn(2, dtype=torch.complex64).conj(),
        "keys": {1: torch.tensor(1), "1": torch.tensor(2), "a.b": {"c": 3}, (1, 2): {4}},
    }
    found = read_checkpoint(save_one("logs", **values))
    assert_equal(found["keys"].pop((1, 2)), values["keys"].pop((1, 2)))
    assert_equal(found, {"epoch": 1, **values})
    assert found["shared"][0] is found["shared"][1]["again"]


def test_peek() -> None:
    """Shapes and plain values are read without the shards."""
    path = save_one("logs", x=torch.ones(3, 2))
    (path / "__0_0.distcp").unlink()
    assert peek(path)["epoch"] == 1
    assert peek(path)["x"].shape == (3, 2)


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "index.pth"])
def test_damage(name: str) -> None:
    """One flipped bit in any file, or a missing one, is noticed before the engine reads it."""
    path = save_one("logs", x=torch.randn(100))
    file, chance = path / name, random.Random(0)
    good = file.read_bytes()
    for _ in range(50):
        bad = bytearray(good)
        bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        file.write_bytes(bad)
        with pytest.raises(CheckpointError, match=rf"{name}|damaged"):
            read_checkpoint(path)
    file.unlink()
    with pytest.raises(CheckpointError, match=rf"{name} is missing|is a directory"):
        read_checkpoint(path)
    file.write_bytes(good)
    assert read_checkpoint(path)["epoch"] == 1


def damaged_on_one(path: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    return str(caught.value)


def test_damage_is_told_on_every_rank(tmp_path: Path) -> None:
    """Each rank verifies some files, and all of them raise what one has found."""
    run_ranks(train, str(tmp_path), 1)
    with (tmp_path / "last.dcp/__1_0.distcp").open("r+b") as file:
        file.write(b"x")
    told = run_ranks(damaged_on_one, str(tmp_path / "last.dcp"))
    assert all("its __1_0.distcp does not have the digest" in text for text in told)


def test_latest_passes_over_damage() -> None:
    """A damaged last checkpoint is warned about, and the newest good one is taken."""
    for epoch in (1, 2):
        path = save_one("logs", epoch)
    assert latest("logs") == path
    (path / ".metadata").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"(last|exp_2)\.dcp is damaged.*an older one is taken"):
        assert latest("logs") == Path("logs/exp_1.dcp")


def refused_on_one(logdir: str) -> tuple[str, list[str]]:
    """Rank 1 has what cannot be saved; then a save succeeds."""
    manager = CheckpointManager(logdir, sharded=True)
    hook = print if distributed.rank() == 1 else None
    with pytest.raises(TypeError) as caught:
        manager.process(0.5, 1, {"x": torch.ones(2), "hook": hook})
    distributed.barrier()
    left = sorted(os.listdir(Path(logdir, "shards")))  # noqa: PTH208
    distributed.barrier()  # before rank 0 goes on and makes a new one
    manager.process(0.5, 1, {"x": torch.ones(2)})
    return str(caught.value), left


def test_refused_on_every_rank(tmp_path: Path) -> None:
    """What one rank cannot save is refused on all, leaves nothing, and training can go on."""
    for text, left in run_ranks(refused_on_one, str(tmp_path)):
        assert "a checkpoint cannot hold hook" in text
        assert left == []
    assert read_checkpoint(tmp_path / "last.dcp")["x"].tolist() == [1, 1]


def unlike(logdir: str) -> str:
    """Batch norm's statistics are those of the rank; then each rank has another stage."""
    linear: Any = fully_shard(nn.Linear(5, 7))
    model = nn.Sequential(linear, *(nn.BatchNorm1d(7) for _ in range(3)))
    for buffer in model.buffers():
        buffer.fill_(distributed.rank())
    manager = CheckpointManager(logdir, sharded=True)
    manager.process(0.5, 1, make_checkpoint("train", 1, model))
    with pytest.raises(CheckpointError) as caught:
        manager.process(0.5, 2, {"model_state_dict": {f"{distributed.rank()}.w": torch.ones(1)}})
    return str(caught.value)


def test_ranks_that_are_not_alike(tmp_path: Path) -> None:
    """What is not divided is rank 0's, as in a file; what rank 0 lacks is not lost in silence."""
    for text in run_ranks(unlike, str(tmp_path)):
        assert "rank 1 has model_state_dict['1.w'], which rank 0 does not have" in text
    state = read_checkpoint(tmp_path / "last.dcp")["model_state_dict"]
    assert not any(value.any() for name, value in state.items() if "running" in name)


def test_sparse_tensors() -> None:
    """Tensors that the engine does not write are refused with their place."""
    with pytest.raises(TypeError, match=r"cannot hold state\[0\]: it is sparse; store"):
        save_one("logs", state=[torch.eye(2).to_sparse()])
    assert read_checkpoint(save_one("logs", epoch=2))["epoch"] == 2


def replaced(logdir: str) -> str:
    old = CheckpointManager(logdir, sharded=True)
    old.process(0.5, 1, {"x": torch.ones(2)})
    new = CheckpointManager(logdir, sharded=True)
    new.process(0.5, 2, {"x": torch.ones(2)})
    with pytest.raises(CheckpointError) as caught:
        old.process(0.5, 3, {"x": torch.zeros(2)})
    return str(caught.value)


def test_the_newer_run_owns(tmp_path: Path) -> None:
    """The saves of a run that was replaced are refused, on every rank."""
    assert all("belongs to a newer run" in text for text in run_ranks(replaced, str(tmp_path)))
    assert read_checkpoint(tmp_path / "last.dcp")["x"].tolist() == [1, 1]
    assert len(names(tmp_path / "shards")) == 2


def test_save_last() -> None:
    """`save_last` replaces the last checkpoint alone, and nothing stays behind."""
    manager = CheckpointManager("logs", save_n_best=0, sharded=True)
    manager.process(0.5, 1, {"x": torch.ones(2)})
    for value in (2, 3):
        manager.save_last({"x": torch.full((2,), value)})
    assert read_checkpoint("logs/best.dcp")["x"].tolist() == [1, 1]
    assert read_checkpoint("logs/last.dcp")["x"].tolist() == [3, 3]
    assert len(names(Path("logs/shards"))) == 2


def test_runs_that_share_their_shards() -> None:
    """A log directory whose shards are a link to another's removes none of them."""
    for run in ("a", "b"):
        save_one(run)
    Path("a/shards").rename("large")
    for folder in Path("b/shards").iterdir():
        folder.rename(Path("large", folder.name))
    Path("b/shards").rmdir()
    for run in ("a", "b"):
        Path(run, "shards").symlink_to("../large")
    other = CheckpointManager("b", save_n_best=0, sharded=True)
    with pytest.raises(PermissionError, match="it leads out of b"):
        other.process(0.1, 2, {"epoch": 2})
    assert [read_checkpoint(f"{run}/last.dcp")["epoch"] for run in ("a", "b")] == [1, 1]
    assert not list(Path("b").glob(".*"))


def test_not_in_the_background() -> None:
    """Shards are written by all ranks together, not behind their backs."""
    with pytest.raises(ValueError, match="cannot be saved in the background"):
        CheckpointManager("logs", sharded=True, background=True)


def test_foreign_directories() -> None:
    """A directory that is not a checkpoint is named as such."""
    Path("other").mkdir()
    with pytest.raises(CheckpointError, match="other is a directory"):
        read_checkpoint("other")
    save_checkpoint({"epoch": 1}, "other/index.pth")
    with pytest.raises(CheckpointError, match=r"other.*is not the index of a sharded checkpoint"):
        read_checkpoint("other")
