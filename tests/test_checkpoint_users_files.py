"""A user's own files in a log directory survive whatever a manager does there."""

from __future__ import annotations

import os
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sweeps import sweep
from test_checkpoint_crashes import die_at
from torch import nn

from batteries import CheckpointError, CheckpointManager, make_checkpoint
from batteries.checkpoint import latest, read_checkpoint

NAMES = [
    "exp_{n}_for_paper{s}", "exp_0{n}{s}", "exp_{n}.1{s}", "exp_{n} (copy){s}", "exp_+{n}{s}",
    "exp_{s}", "exp_{n}{s}.bak", "EXP_{n}{s}", "exp_9{n}0{s}", "exp_\u0661{s}", "my best{s}",
    "best-{n}{s}", "last_{n}{s}", ".exp_{n}{s}.tmp", ".notes.tmp", "exp_{n}{s}~", "metrics_{n}",
]  # fmt: skip


class Directory:
    """A log directory, the user's own files in it, and what the manager should have kept."""

    def __init__(self, dice: random.Random, path: Path) -> None:
        self.dice, self.path = dice, path
        self.sharded = dice.random() < 0.25
        self.suffix = ".dcp" if self.sharded else ".pth"
        self.users: dict[str, Any] = {}  # what is in them
        self.scores: dict[int, float] = {}
        self.kept: set[str] = set()
        self.restart()

    def restart(self) -> None:
        self.keep = self.dice.choice([0, 1, 2, 3])
        self.manager = self.made()

    def made(self) -> CheckpointManager:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return CheckpointManager(self.path, save_n_best=self.keep, sharded=self.sharded)

    def save(self) -> None:
        """The next epoch, or an earlier one again, in whose stead the later ones are forgotten."""
        last = max(self.scores, default=0)
        epoch = last + 1 if self.dice.random() < 0.8 else self.dice.randint(1, last + 1)
        score = self.dice.random()
        self.scores = {old: value for old, value in self.scores.items() if old < epoch}
        self.process(epoch, score)

    def process(self, epoch: int, score: float) -> None:
        self.scores[epoch] = score
        process(self.manager, epoch, score)
        ranked = sorted(self.scores, key=lambda epoch: (self.scores[epoch], epoch))
        self.kept = {f"exp_{epoch}{self.suffix}" for epoch in ranked[: self.keep]}

    def kill(self) -> None:
        """Die somewhere in a save, in another process; the next start makes it good."""
        epoch, score = max(self.scores, default=0) + 1, self.dice.random()
        child = os.fork()
        if child == 0:  # never returns into the test
            try:
                die_at(self.dice.randint(1, 12), process, self.made(), epoch, score)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        self.manager = self.made()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            latest(self.path)  # as `resume` reads it
        self.process(epoch, score)

    def put(self) -> None:
        """A file of the user's own, often a copy of one of the manager's."""
        number = self.dice.randint(1, max(self.scores, default=0) + 1)
        target = self.path / self.dice.choice(NAMES).format(n=number, s=self.suffix)
        if target.name in self.users:
            return
        self.path.mkdir(exist_ok=True)
        own = [path for path in self.path.glob(f"*{self.suffix}") if path.name not in self.users]
        source = self.dice.choice([*own, None])
        if source is None:
            target.write_text("mine")
        elif self.sharded:
            shutil.copytree(source, target)
        else:
            copies: list[Callable[[Path, Path], object]] = [shutil.copy, os.link]
            self.dice.choice(copies)(source, target)
        self.users[target.name] = content(target)

    def check(self) -> None:
        for name, expected in self.users.items():
            assert content(self.path / name) == expected, f"{name} is not as it was"
        if not self.path.exists():
            return
        found = {path.name for path in self.path.iterdir()} - set(self.users) - {"shards"}
        more = (
            {f"best{self.suffix}", f"last{self.suffix}", "metrics.json"} if self.scores else set()
        )
        # an earlier manager with a smaller save_n_best may have removed some of them
        assert more <= found <= more | self.kept
        for path in self.path.glob(f"exp_*{self.suffix}"):
            if path.name in self.kept & found:
                assert f"exp_{read_checkpoint(path)['epoch']}{self.suffix}" == path.name
        if self.scores:
            newest = latest(self.path)
            assert newest is not None
            assert read_checkpoint(newest)["epoch"] == max(self.scores)


def process(manager: CheckpointManager, epoch: int, score: float) -> None:
    model = nn.Linear(1, 1, bias=False).requires_grad_(False)
    model.weight.fill_(epoch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        manager.process(score, epoch, make_checkpoint("train", epoch, model))


def content(path: Path) -> Any:
    if not path.is_dir():
        return path.read_bytes()
    return {inner.name: inner.read_bytes() for inner in path.iterdir()}


@pytest.mark.parametrize("seed", [*range(8), *map(sweep, range(8, 24))])
def test_the_users_own_files_stay(seed: int) -> None:
    """Whatever is saved, restarted and killed, in any order, no file of a user's changes."""
    torch.set_num_threads(1)
    dice = random.Random(seed)
    directory = Directory(dice, Path("logs"))
    steps: list[Callable[[], None]] = [directory.put] * 4 + [directory.save] * 5
    steps += [directory.restart] + ([] if directory.sharded else [directory.kill])
    for _ in range(20):
        dice.choice(steps)()
        directory.check()
    assert directory.users


@pytest.mark.parametrize("target", ["exp_1.pth", "mine.pth"])
def test_links_beside_the_files(target: str) -> None:
    """A name that is a link to a file beside it gets a file of its own; that one stays as it is."""
    manager = CheckpointManager("logs")
    process(manager, 1, 0.5)
    for name in ("last.pth", "best.pth"):
        Path("logs", name).unlink()
        shutil.copy("logs/exp_1.pth", "logs/mine.pth")
        Path("logs", name).symlink_to(target)
    before = Path("logs", target).read_bytes()
    process(CheckpointManager("logs"), 2, 0.4)
    assert Path("logs", target).read_bytes() == before
    assert [read_checkpoint(f"logs/{n}.pth")["epoch"] for n in ("best", "last", "exp_1")] == [
        2,
        2,
        1,
    ]


def test_the_name_of_an_epoch_to_come() -> None:
    """A user's file under the name that an epoch is to have stays, and the save says so."""
    manager = CheckpointManager("logs", save_n_best=1)
    process(manager, 1, 0.5)
    for epoch in (2, 3):
        shutil.copy("logs/exp_1.pth", f"logs/exp_{epoch}.pth")
    process(manager, 2, 0.6)  # is not among the best, and needs no name
    before = content(Path("logs"))
    with pytest.raises(CheckpointError, match=r"logs/exp_3\.pth was not written by this manager"):
        process(manager, 3, 0.4)
    assert content(Path("logs")) == before
    Path("logs/exp_3.pth").rename("logs/mine.pth")
    process(manager, 3, 0.4)
    assert read_checkpoint("logs/exp_3.pth")["epoch"] == 3


@pytest.mark.parametrize("name", ["last.pth", "best.pth", "exp_3.pth", "metrics.json"])
def test_links_to_other_places(name: str) -> None:
    """A name that leads out of the directory is refused, and nothing out there changes."""
    for logdir in ("logs", "others"):
        process(CheckpointManager(logdir), 1, 0.5)
    Path("logs", name).unlink(missing_ok=True)
    Path("logs", name).symlink_to(f"../others/{name}")
    before = content(Path("others"))
    for _ in range(2):
        with pytest.raises(PermissionError, match=f"it leads out of logs.*logs/{name}"):
            process(CheckpointManager("logs"), 2, 0.4)
    assert content(Path("others")) == before


@pytest.mark.parametrize("epoch", [torch.tensor(3), 3, 3.0])
def test_epochs_that_do_not_agree(epoch: Any) -> None:
    """A checkpoint of another epoch than the call's is refused before anything is written."""
    checkpoint = {**make_checkpoint("train", 1, nn.Linear(1, 1)), "epoch": epoch}
    manager = CheckpointManager("logs")
    with pytest.raises(ValueError, match=r"that of epoch 3.*, but process got epoch=7"):
        manager.process(0.5, 7, checkpoint)
    with pytest.raises(ValueError, match=r"epoch is 3\.5; expected a whole number"):
        manager.process(0.5, 3.5, checkpoint)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"epoch is None; expected a whole number"):
        manager.process(0.5, None, checkpoint)  # type: ignore[arg-type]
    assert not Path("logs").exists()
    manager.process(0.5, 3, checkpoint)
    del checkpoint["epoch"]
    manager.process(0.5, 4, checkpoint)


def test_saves_by_step() -> None:
    """A checkpoint that has a step may be ranked by it, whatever its epoch, and goes on there."""
    manager = CheckpointManager("logs", save_n_best=1)
    for step, loss in ((500, 0.5), (1000, 0.4), (1500, 0.6)):
        checkpoint = make_checkpoint("train", 1, nn.Linear(1, 1), step=step)
        manager.process(loss, step, checkpoint)
    assert torch.load("logs/exp_1000.pth")["step"] == torch.load("logs/best.pth")["step"] == 1000
    assert [row["epoch"] for row in manager.history] == [500, 1000, 1500]
    with pytest.raises(ValueError, match=r"that of epoch 1, .* got epoch=7.* make_checkpoint\("):
        manager.process(0.5, 7, checkpoint)
