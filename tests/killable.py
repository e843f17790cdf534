"""An experiment with everything that has a memory, which kills itself where it is told."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
import warm
from ranks import run_ranks
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset, get_worker_info

from batteries import (
    AverageMeter,
    CheckpointManager,
    PreemptionGuard,
    accumulate,
    check_in_sync,
    distribute,
    distributed,
    make_checkpoint,
    resume,
    seed_all,
    share_buffers,
    unwrap,
)
from batteries.data import DataLoader

EPOCHS = 2
SAMPLES = 150
STEPS = 10  # of both epochs: 13 batches of 12, 3 in a window
# The step, the rank, and what happens there: SIGKILL, SIGTERM, or SIGKILL to a worker, at the
# sample whose index is the number.
Kill = tuple[int, int, str]


@cache
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    images = torch.from_numpy(data.images[:SAMPLES]).float().unsqueeze(1) / 16
    return images, torch.from_numpy(data.target[:SAMPLES])


class Augmented(Dataset[tuple[Tensor, int]]):
    """Digits, shifted, mirrored and blurred by three generators."""

    def __init__(self, kills: list[Kill], directory: str) -> None:
        self.images, self.labels = digits()
        self.kills = kills
        self.directory = directory

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if get_worker_info() is not None:
            strike(self.kills, index, "worker", self.directory)
        image = torch.roll(self.images[index], int(np.random.randint(-1, 2)), dims=2)
        image = image.flip(1) if random.random() < 0.5 else image
        return image + 0.1 * torch.randn(image.shape), int(self.labels[index])


def strike(kills: list[Kill], number: int, where: str, directory: str) -> None:
    """Send this process the signal that is planned for it, once for all starts."""
    for kill in kills:
        mark = Path(directory, "-".join(map(str, kill)))
        here = (kill[2] == "worker") == (where == "worker")
        if here and kill[:2] == (number, distributed.rank()) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGTERM if kill[2] == "SIGTERM" else signal.SIGKILL)


def struck(directory: Path) -> int:
    """How many of the signals were sent."""
    return len(list(directory.glob("*-*-*")))


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
        *(nn.Dropout(0.2), nn.Linear(144, 20), nn.Tanh(), nn.Linear(20, 10)),
    )


def experiment(
    directory: str, kills: list[Kill], workers: int = 0, left_out: tuple[str, ...] = ()
) -> str:
    """SHA-256 of the final state of everything, and of metrics.json."""
    checkpoints = Path(directory, "checkpoints")
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
    # Powers of two would change no bit of a gradient.
    scaler = torch.amp.GradScaler("cpu", 10.0, growth_factor=1.5, growth_interval=3)
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
        "scaler": scaler,
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
    with PreemptionGuard() as guard:
        while loader.epoch < EPOCHS:
            epoch = loader.epoch + 1
            for (x, y), window in accumulate(loader, model, 3, scaler=scaler):
                with window:
                    loss = F.cross_entropy(model(x), y)
                    window.backward(loss)
                meter.update(loss, len(y))
                if window.closed:
                    if window.step(optimizer):
                        scheduler.step()
                    optimizer.zero_grad(set_to_none=True)
                    ema.update_parameters(unwrap(model))
                    step += 1
                    if step % 2 == 0:
                        manager.save_last(checkpoint(epoch))
                    strike(kills, step, "rank", directory)
                    if guard.stop():
                        manager.save_last(checkpoint(epoch))
                        raise SystemExit(guard.exit_code)
            check_in_sync(unwrap(model)[0], step=step)  # type: ignore[index]
            share_buffers(model)
            total = distributed.all_reduce(meter.sum) / distributed.all_reduce(meter.counter)
            meter.reset()
            manager.process({"loss": total, "step": step}, epoch, checkpoint(epoch))
    state = {name: part.state_dict() for name, part in objects.items()}
    distributed.barrier()  # rank 0 may still be writing
    scores = (checkpoints / "metrics.json").read_bytes()
    return digest([unwrap(model).state_dict(), state, scores])


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


# ---------------------------------------------------------------- start it


def run(world_size: int, directory: Path, *args: Any) -> str:
    """Start it again, like a cluster, until it ends by itself."""
    directory.mkdir()
    for _ in range(20):
        try:
            results = run_ranks(experiment, str(directory), *args, world_size=world_size)
        except EOFError:  # rank 0 was killed
            continue
        if all(isinstance(result, str) for result in results):
            return str(results[0])
    raise AssertionError("it never ended")


def run_torchrun(world_size: int, directory: Path, kills: list[Kill], workers: int = 0) -> str:
    """Let torchrun start it again."""
    directory.mkdir()
    options = [f"--nproc-per-node={world_size}", f"--max-restarts={len(kills)}"]
    program = [__file__, str(directory), json.dumps(kills), str(workers)]
    result = warm.run(
        warm.torchrun(*options, *program),
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return "".join(warm.told_by(result.stdout.splitlines()))


def main(directory: str, kills: str, workers: str) -> None:
    with distributed.setup():
        if distributed.is_main():
            with Path(directory, "worlds").open("a") as file:
                file.write(f"{distributed.world_size()}\n")
        plan = [(number, rank, what) for number, rank, what in json.loads(kills)]
        result = experiment(directory, plan, int(workers))
        if distributed.is_main():
            print(result)


if __name__ == "__main__":
    main(*sys.argv[1:])
