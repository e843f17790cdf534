"""Train a digit classifier with one process for each device.

    torchrun --nproc-per-node=2 examples/ddp/experiment.py

Takes 15 to 30 seconds on two CPU cores. Test accuracy: 0.98 or more.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from datasets import load_splits
from models import DigitNet
from sklearn.metrics import accuracy_score
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from batteries import (
    AverageMeter,
    CheckpointManager,
    JsonLinesLogger,
    Loggers,
    Predictions,
    PreemptionGuard,
    TensorBoardLogger,
    accumulate,
    distribute,
    distributed,
    get_logger,
    load_checkpoint,
    make_checkpoint,
    resume,
    seed_all,
    share_buffers,
    start_run,
    to_device,
    unwrap,
)
from batteries.data import DataLoader
from batteries.progress import tqdm
from batteries.scoreboard import record_scores

Batches = DataLoader[tuple[Tensor, Tensor]]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--exp-name", default="ddp", help="the runs are LOGDIR/EXP_NAME/001, …")
    parser.add_argument("--logdir", default="runs")
    parser.add_argument("--dataset", choices=["digits", "mnist"], default="digits")
    parser.add_argument("--fold", type=int, choices=range(5), default=0, help="fold for validation")
    parser.add_argument("--batch-size", type=int, default=16, help="images for each process")
    parser.add_argument("--accumulation-steps", type=int, default=2)
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--num-epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--continue", dest="resume", action="store_true", help="resume the newest unfinished run"
    )
    # torch.distributed.launch passes this option. It is not needed: LOCAL_RANK has the value.
    parser.add_argument("--local-rank", "--local_rank", help=argparse.SUPPRESS)
    return parser.parse_args()


def train(
    epoch: int,
    model: nn.Module,
    loader: Batches,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    meter: AverageMeter,
    guard: PreemptionGuard,
    device: torch.device,
    args: argparse.Namespace,
) -> bool:
    """Train to the end of an epoch. Return False if the guard stopped it before the end."""
    model.train()
    batches = accumulate(loader, model, args.accumulation_steps)
    size, meters = args.batch_size * distributed.world_size(), {"loss": meter}
    bar = tqdm(batches, f"epoch {epoch}", batch_size=size, meters=meters, leave=False)
    for batch, window in bar:
        images, labels = to_device(batch, device)
        with window:  # the ranks share gradients once in each window
            loss = F.cross_entropy(model(images), labels)
            window.backward(loss)
        meter.update(loss, labels.shape[0])
        if window.closed:
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            if guard.stop():  # the same answer on all ranks
                return False
    return True


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Batches,
    device: torch.device,
) -> dict[str, float]:
    """Compute the loss and the accuracy over all ranks. Each sample counts once."""
    model = unwrap(model).eval()  # unwrapped: ranks may have different numbers of batches
    share_buffers(model)  # checkpoints have the running statistics of rank 0: evaluate with them
    loss, outputs = AverageMeter(), Predictions(len(loader.dataset))  # type: ignore[arg-type]
    for batch in tqdm(loader, "valid", leave=False):
        images, labels = to_device(batch, device)
        logits = model(images)
        loss.update(F.cross_entropy(logits, labels), labels.shape[0])
        outputs.add(loader.indices, guess=logits.argmax(1), target=labels)
    guess, target = outputs.gather()
    return {"loss": loss.all_reduce(), "accuracy": float(accuracy_score(target, guess))}


def experiment(run: Path, args: argparse.Namespace, device: torch.device) -> None:
    # ---------------------------------------------------------------- 1. prepare the environment
    logger = get_logger("experiment", log_file=run / "log.txt")
    with distributed.rank_zero_first():  # rank 0 downloads the data, then the others read it
        splits = load_splits(args.dataset, args.fold)
    logger.info("%s on %d x %s", run, distributed.world_size(), device.type)
    for name, split in splits._asdict().items():
        classes = torch.bincount(split.labels).tolist()
        logger.info("%s: %d images, by class %s", name, len(split), classes)

    # ---------------------------------------------------------------- 2. seed everything
    seed_all(args.seed)  # the same seed on every rank, so the same weights

    # ---------------------------------------------------------------- 3. data loaders
    train_loader: Batches = DataLoader(
        splits.train,
        args.batch_size,
        shuffle=True,
        num_workers=args.num_workers,
        drop_last=True,  # a very small last batch would disturb batch norm
    )
    if len(train_loader) == 0:
        raise SystemExit(
            f"--batch-size {args.batch_size} is larger than the training set: "
            f"{len(splits.train)} images"
        )

    # Each rank gets a part of the samples. In these two loaders, no sample comes twice.
    valid_loader: Batches = DataLoader(splits.valid, batch_size=256)
    test_loader: Batches = DataLoader(splits.test, batch_size=256)

    # ---------------------------------------------------------------- 4. model and optimizer
    model_args: dict[str, Any] = {"width": 32, "dropout": 0.2}
    model = distribute(DigitNet(**model_args), device)
    optimizer = AdamW(model.parameters(), lr=args.lr)
    windows = -(-len(train_loader) // args.accumulation_steps)
    scheduler = CosineAnnealingLR(optimizer, T_max=args.num_epochs * windows)
    manager = CheckpointManager(
        run / "checkpoints", metric="accuracy", metric_minimization=False, save_n_best=3
    )
    meter = AverageMeter()  # the loss in the current epoch
    loggers = Loggers(TensorBoardLogger(run / "tensorboard"), JsonLinesLogger(run))
    objects: dict[str, Any] = {
        "optimizer": optimizer,
        "scheduler": scheduler,
        "loader": train_loader,
        "meter": distributed.PerRank(meter),
        "loggers": loggers,
    }
    notes: dict[str, Any] = {"experiment_args": args, "model_args": model_args}
    done = 0
    last = resume(manager.logdir, model, **objects)
    if last:
        done = last["epoch"]
        position = train_loader.state_dict()["position"]
        logger.info("resumed after epoch %d and %d more images", done, position)

    # ---------------------------------------------------------------- 5. train
    with loggers, PreemptionGuard() as guard:
        for epoch in range(done + 1, args.num_epochs + 1):
            parts = (model, train_loader, optimizer, scheduler, meter, guard, device, args)
            if not train(epoch, *parts):
                manager.save_last(make_checkpoint("train", epoch - 1, model, **objects, **notes))
                logger.info("stopped in epoch %d; use --continue to resume", epoch)
                raise SystemExit(guard.exit_code)
            train_loss = meter.all_reduce()
            meter.reset()
            scores = evaluate(model, valid_loader, device)
            metrics = {"train": {"loss": train_loss}, "valid": scores}
            loggers.log_metrics({**metrics, "lr": scheduler.get_last_lr()[0]}, epoch)
            logger.info(
                "epoch %2d: train loss %.4f, validation loss %.4f, accuracy %.4f",
                *(epoch, train_loss, scores["loss"], scores["accuracy"]),
            )
            checkpoint = make_checkpoint("train", epoch, model, metrics=metrics, **objects, **notes)
            manager.process(score=scores, epoch=epoch, checkpoint=checkpoint)

    # ---------------------------------------------------------------- 6. test against validation
    distributed.barrier()  # rank 0 may still be writing
    load_checkpoint(manager.best_path, model)
    valid = evaluate(model, valid_loader, device)["accuracy"]
    test = evaluate(model, test_loader, device)["accuracy"]
    logger.info("test accuracy %.4f, validation %.4f, difference %+.4f", test, valid, test - valid)
    if distributed.is_main():
        record_scores(run, validation=valid, test=test)
    show_files(run)


@distributed.rank_zero_only
def show_files(run: Path) -> None:
    python = os.path.relpath(sys.executable)
    load = f"import torch; print(torch.load('{run}/checkpoints/best.pth')['metrics'])"
    print(f"\n{run} has")
    print(f"  the log           cat {run}/log.txt")
    print(f"  all runs          {python} -m batteries runs {run.parent}")
    print(f"  the scores        {python} -m json.tool {run}/checkpoints/metrics.json")
    print(f'  the best weights  {python} -c "{load}"')
    print(f"  the curves        {python} -m tensorboard.main --logdir {run}/tensorboard")


if __name__ == "__main__":
    arguments = parse_args()
    logdir = Path(arguments.logdir) / arguments.exp_name
    # These may differ when a run resumes.
    free = ["resume", "num_workers", "local_rank"]
    with (
        distributed.setup() as own_device,
        start_run(logdir, arguments, new=not arguments.resume, may_differ=free) as own_run,
    ):
        experiment(own_run.path, arguments, own_device)
