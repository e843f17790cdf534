"""Train a digit classifier with nn.DataParallel, in two stages.

    python examples/dp/experiment.py

Takes 10 to 20 seconds on two CPU cores. Test accuracy: 0.98 or more.
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
    get_logger,
    load_checkpoint,
    make_checkpoint,
    resume,
    seed_all,
    start_run,
    to_device,
)
from batteries.data import DataLoader
from batteries.progress import tqdm
from batteries.scoreboard import record_scores

# Each stage has its own learning rate, and starts from the best weights of the stage before it.
STAGES = {"train": 5e-3, "finetune": 1e-3}
Batches = DataLoader[tuple[Tensor, Tensor]]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--exp-name", default="dp", help="the runs are LOGDIR/EXP_NAME/001, …")
    parser.add_argument("--logdir", default="runs")
    parser.add_argument("--dataset", choices=["digits", "mnist"], default="digits")
    parser.add_argument("--fold", type=int, choices=range(5), default=0, help="fold for validation")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--accumulation-steps", type=int, default=2)
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--num-epochs", type=int, default=8, help="epochs of each stage")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--continue", dest="resume", action="store_true", help="resume the newest unfinished run"
    )
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
    meters = {"loss": meter}
    bar = tqdm(batches, f"epoch {epoch}", batch_size=args.batch_size, meters=meters, leave=False)
    for batch, window in bar:
        images, labels = to_device(batch, device)
        with window:
            loss = F.cross_entropy(model(images), labels)
            window.backward(loss)
        meter.update(loss, labels.shape[0])
        if window.closed:
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            if guard.stop():
                return False
    return True


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Batches,
    device: torch.device,
) -> dict[str, float]:
    """Compute the loss and the accuracy. Each sample counts once."""
    model.eval()
    loss, outputs = AverageMeter(), Predictions(len(loader.dataset))  # type: ignore[arg-type]
    for batch in tqdm(loader, "valid", leave=False):
        images, labels = to_device(batch, device)
        logits = model(images)
        loss.update(F.cross_entropy(logits, labels), labels.shape[0])
        outputs.add(loader.indices, guess=logits.argmax(1), target=labels)
    guess, target = outputs.gather()
    return {"loss": loss.average, "accuracy": float(accuracy_score(target, guess))}


def experiment(run: Path, args: argparse.Namespace, device: torch.device) -> None:
    # ---------------------------------------------------------------- 1. prepare the environment
    logger = get_logger("experiment", log_file=run / "log.txt")
    splits = load_splits(args.dataset, args.fold)
    logger.info("%s on %s", run, device.type)
    for name, split in splits._asdict().items():
        classes = torch.bincount(split.labels).tolist()
        logger.info("%s: %d images, by class %s", name, len(split), classes)

    # ---------------------------------------------------------------- 2. seed everything
    seed_all(args.seed)

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
    valid_loader: Batches = DataLoader(splits.valid, batch_size=256)
    test_loader: Batches = DataLoader(splits.test, batch_size=256)

    # ---------------------------------------------------------------- 4. model
    model_args: dict[str, Any] = {"width": 32, "dropout": 0.2}
    model = nn.DataParallel(DigitNet(**model_args).to(device))  # on the CPU it has no effect

    best_path = None
    for stage, lr in STAGES.items():
        # ------------------------------------------------------------ 5. optimizer, scheduler
        if best_path is not None:  # start from the best weights of the last stage
            load_checkpoint(best_path, model)
        optimizer = AdamW(model.parameters(), lr=lr)
        windows = -(-len(train_loader) // args.accumulation_steps)
        scheduler = CosineAnnealingLR(optimizer, T_max=args.num_epochs * windows)
        manager = CheckpointManager(
            run / "checkpoints" / stage, metric="accuracy", metric_minimization=False, save_n_best=3
        )
        best_path = manager.best_path
        meter = AverageMeter()  # the loss in the current epoch
        loggers = Loggers(
            TensorBoardLogger(run / "tensorboard" / stage), JsonLinesLogger(run / "metrics" / stage)
        )
        objects: dict[str, Any] = {
            "optimizer": optimizer,
            "scheduler": scheduler,
            "loader": train_loader,
            "meter": meter,
            "loggers": loggers,
        }
        notes: dict[str, Any] = {"experiment_args": args, "model_args": model_args}
        done = 0
        last = resume(manager.logdir, model, **objects)
        if last:
            done = last["epoch"]
            position = train_loader.state_dict()["position"]
            logger.info("%s: resumed after epoch %d and %d more images", stage, done, position)

        # ------------------------------------------------------------ 6. train
        with loggers, PreemptionGuard() as guard:
            for epoch in range(done + 1, args.num_epochs + 1):
                parts = (model, train_loader, optimizer, scheduler, meter, guard, device, args)
                if not train(epoch, *parts):
                    manager.save_last(make_checkpoint(stage, epoch - 1, model, **objects, **notes))
                    logger.info("%s: stopped in epoch %d; use --continue to resume", stage, epoch)
                    raise SystemExit(guard.exit_code)
                train_loss = meter.average
                meter.reset()
                scores = evaluate(model, valid_loader, device)
                metrics = {"train": {"loss": train_loss}, "valid": scores}
                loggers.log_metrics({**metrics, "lr": scheduler.get_last_lr()[0]}, epoch)
                logger.info(
                    "%s, epoch %2d: train loss %.4f, validation loss %.4f, accuracy %.4f",
                    *(stage, epoch, train_loss, scores["loss"], scores["accuracy"]),
                )
                checkpoint = make_checkpoint(
                    stage, epoch, model, metrics=metrics, **objects, **notes
                )
                manager.process(score=scores, epoch=epoch, checkpoint=checkpoint)

    # ---------------------------------------------------------------- 7. test against validation
    load_checkpoint(manager.best_path, model)
    valid = evaluate(model, valid_loader, device)["accuracy"]
    test = evaluate(model, test_loader, device)["accuracy"]
    logger.info("test accuracy %.4f, validation %.4f, difference %+.4f", test, valid, test - valid)
    record_scores(run, validation=valid, test=test)
    show_files(run, stage)


def show_files(run: Path, stage: str) -> None:
    python = os.path.relpath(sys.executable)
    load = f"import torch; print(torch.load('{run}/checkpoints/{stage}/best.pth')['metrics'])"
    print(f"\n{run} has")
    print(f"  the log           cat {run}/log.txt")
    print(f"  all runs          {python} -m batteries runs {run.parent}")
    print(f"  the scores        {python} -m json.tool {run}/checkpoints/{stage}/metrics.json")
    print(f'  the best weights  {python} -c "{load}"')
    print(f"  the curves        {python} -m tensorboard.main --logdir {run}/tensorboard")


if __name__ == "__main__":
    arguments = parse_args()
    logdir = Path(arguments.logdir) / arguments.exp_name
    free = ["resume", "num_workers"]  # these may differ when a run resumes
    with start_run(logdir, arguments, new=not arguments.resume, may_differ=free) as own_run:
        own_device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        experiment(own_run.path, arguments, own_device)
