"""A run that is killed anywhere and started again ends with the bits of one that never was."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from ranks import run_ranks
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset, get_worker_info

from batteries import (
    AverageMeter,
    CheckpointError,
    CheckpointManager,
    accumulate,
    check_in_sync,
    distribute,
    distributed,
    make_checkpoint,
    resume,
    save_checkpoint,
    seed_all,
    share_buffers,
    unwrap,
)
from batteries.data import DataLoader

EPOCHS = 2
Kill = tuple[int, int, str]  # the step, the rank, and what is killed there


@cache
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    images = torch.from_numpy(data.images[:150]).float().unsqueeze(1) / 16
    return images, torch.from_numpy(data.target[:150])


class Augmented(Dataset[tuple[Tensor, int]]):
    """Digits, shifted, mirrored and blurred by three generators."""

    def __init__(self, kills: list[Kill], directory: str) -> None:
        self.images, self.labels = digits()
        self.kills = kills
        self.directory = directory

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if get_worker_info() is not None and index in (5, 50):
            die_once(self.kills, (index, distributed.rank(), "worker"), self.directory)
        image = torch.roll(self.images[index], int(np.random.randint(-1, 2)), dims=2)
        image = image.flip(1) if random.random() < 0.5 else image
        return image + 0.1 * torch.randn(image.shape), int(self.labels[index])


def die_once(kills: list[Kill], kill: Kill, directory: str) -> None:
    mark = Path(directory, "-".join(map(str, kill)))
    if kill in kills and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
        *(nn.Dropout(0.2), nn.Linear(144, 20), nn.Tanh(), nn.Linear(20, 10)),
    )


def experiment(
    directory: str, kills: list[Kill], workers: int = 0, left_out: tuple[str, ...] = ()
) -> tuple[str, bytes]:
    """The digest of the final state, and metrics.json."""
    rank, checkpoints = distributed.rank(), Path(directory, "checkpoints")
    # -------------------------------------------------------- seed, model, optimizer, scheduler
    seed_all(1)
    model = distribute(network(), "cpu")
    ema = AveragedModel(
        unwrap(model),
        multi_avg_fn=get_ema_multi_avg_fn(0.9),  # type: ignore[no-untyped-call]
        use_buffers=True,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=100)
    # -------------------------------------------------------- data
    batch_size = 12 // distributed.world_size()
    dataset = Augmented(kills, directory)
    loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=workers)
    # -------------------------------------------------------- go on
    meter = AverageMeter()
    manager = CheckpointManager(checkpoints, save_n_best=2)
    objects: dict[str, Any] = {
        "optimizer": optimizer,
        "scheduler": scheduler,
        "loader": loader,
        "ema": ema,
        "meter": distributed.PerRank(meter),
    }
    kept = {name: part for name, part in objects.items() if name not in left_out}
    last = resume(checkpoints, model, **kept)
    step = last["step"] if last else 0

    def checkpoint(epoch: int) -> dict[str, Any]:
        return make_checkpoint("train", epoch, model, **objects, step=step)

    # -------------------------------------------------------- train
    while loader.epoch < EPOCHS:
        epoch = loader.epoch + 1
        for (x, y), window in accumulate(loader, model, 3):
            with window:
                loss = F.cross_entropy(model(x), y)
                window.backward(loss)
            meter.update(loss, len(y))
            if window.closed:
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad(set_to_none=True)
                ema.update_parameters(unwrap(model))
                step += 1
                if step % 2 == 0:
                    manager.save_last(checkpoint(epoch))
                die_once(kills, (step, rank, "rank"), directory)
        check_in_sync(unwrap(model)[0], step=step)  # type: ignore[index]
        share_buffers(model)
        total = distributed.all_reduce(meter.sum) / distributed.all_reduce(meter.counter)
        manager.process({"loss": total, "step": step}, epoch, checkpoint(epoch))
        meter.reset()
    state = {name: part.state_dict() for name, part in objects.items()}
    return digest([unwrap(model).state_dict(), state]), (checkpoints / "metrics.json").read_bytes()


def digest(value: Any) -> str:
    """SHA-256 of all that a value holds, bit for bit."""
    sha = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            value = value.detach().numpy().tobytes()
        if isinstance(value, Mapping):
            value = list(value.items())
        if isinstance(value, list | tuple):
            for part in value:
                add(part)
        else:
            sha.update(repr(value).encode())

    add(value)
    return sha.hexdigest()


def run(world_size: int, *args: Any) -> Any:
    """Start it again, like a cluster, until it ends by itself; what rank 0 returned."""
    for _ in range(10):
        try:
            results = run_ranks(experiment, *args, world_size=world_size)
        except EOFError:  # rank 0 was killed
            continue
        if all(isinstance(result, tuple) for result in results):
            return results[0]
    raise AssertionError("it never ended")


def kills_of(world_size: int) -> list[Kill]:
    return [(2, world_size - 1, "rank"), (3, 0, "rank"), (7, world_size // 2, "rank")]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_killed_and_started_again(world_size: int, tmp_path: Path) -> None:
    """Ranks killed at several steps, and all started again: the same bits, the same scores."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = run(world_size, str(tmp_path / "whole"), [])
    kills = kills_of(world_size)
    assert run(world_size, str(tmp_path / "killed"), kills) == whole
    marks = {path.name for path in (tmp_path / "killed").iterdir()} - {"checkpoints"}
    assert len(marks) == len(set(kills))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_and_their_deaths(tmp_path: Path) -> None:
    """With 0, 2 and 3 workers, and after a worker is killed: the same bits."""
    results = []
    for name, kills, workers in [("0", [], 0), ("2", [(50, 0, "worker")], 2), ("3", [], 3)]:
        (tmp_path / name).mkdir()
        results.append(run(1, str(tmp_path / name), kills, workers))
    assert results[0] == results[1] == results[2]
    assert (tmp_path / "2/50-0-worker").exists()


@pytest.mark.filterwarnings("ignore:.*goes on from its beginning")
def test_each_part_is_needed(tmp_path: Path) -> None:
    """Without any one of the parts, a killed run ends otherwise: the comparison would notice."""
    (tmp_path / "whole").mkdir()
    whole = run(1, str(tmp_path / "whole"), [])
    for name in ("optimizer", "scheduler", "loader", "ema", "meter"):
        (tmp_path / name).mkdir()
        assert run(1, str(tmp_path / name), kills_of(1)[1:2], 0, (name,)) != whole


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


def test_a_missing_object() -> None:
    """A state without an object is a warning, an object without a state an error."""
    saved(1, ema=nn.Linear(1, 1))
    with pytest.warns(UserWarning, match=r"logs/last\.pth has ema_state_dict, but no ema= was"):
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


def out_of_sync(change: str) -> None:
    norm = nn.BatchNorm1d(1)
    model = nn.Sequential(nn.Linear(2, 1), norm)
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    check_in_sync(distribute(model, "cpu"), step=3)
    if distributed.rank() == 1 and change == "bias":
        norm.bias.data += 1e-6
    check_in_sync(model, step=distributed.rank() if change == "step" else 3)


@pytest.mark.parametrize(("change", "name"), [("bias", "1.bias"), ("step", "step")])
def test_check_in_sync(change: str, name: str) -> None:
    """The first tensor or number that differs is named, on every rank."""
    for error in run_ranks(out_of_sync, change, world_size=3):
        assert str(error).startswith(f"{name} differs between the ranks: 1")
