"""Train two architectures on three folds each, blend their predictions, and make a submission.

    python examples/submission/experiment.py

Takes one to two minutes on two CPU cores. Test accuracy of the chosen candidate: 0.99 or more.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from architectures import ARCHITECTURES
from datasets import Images, load_images
from sklearn.metrics import accuracy_score, log_loss
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from batteries import (
    AverageMeter,
    CheckpointManager,
    Predictions,
    accumulate,
    get_logger,
    load_checkpoint,
    make_checkpoint,
    predictions,
    resume,
    seed_all,
    start_run,
    to_device,
)
from batteries.averaging import best_checkpoints, save_average
from batteries.blend import blend_files, correlation, find_weights
from batteries.data import DataLoader
from batteries.progress import tqdm
from batteries.scoreboard import record_scores
from batteries.splits import Folds, OutOfFold, make_folds

FOLDS = 3
Batches = DataLoader[tuple[Tensor, Tensor]]
BLENDS: dict[str, dict[str, Any]] = {
    "mean": {"method": "mean"},
    "power average": {"method": "power", "power": 2},
    "geometric": {"method": "geometric"},
    "rank average": {"method": "rank"},
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--exp-name", default="submission", help="the name of the runs' directory")
    parser.add_argument("--logdir", default="runs")
    parser.add_argument("--dataset", choices=["digits", "mnist"], default="digits")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-epochs", type=int, default=15)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args()


@torch.inference_mode()
def predict(model: nn.Module, images: Images, device: torch.device) -> Predictions:
    """Predict the probability of each class, in the order of the images."""
    model.eval()
    loader: Batches = DataLoader(images, batch_size=256)
    outputs = Predictions(len(images))
    for batch in loader:
        x, _ = to_device(batch, device)
        outputs.add(loader.indices, probability=model(x).softmax(1))
    return outputs


def loss_of(targets: Any, probability: Any) -> float:
    """Compute the log loss in 64 bits, where the sums of 32-bit probabilities are not exactly 1."""
    wide = probability.astype(np.float64)
    return float(log_loss(targets, wide / wide.sum(1, keepdims=True)))


def train_fold(
    name: str, fold: int, folds: Folds, run: Path, device: torch.device, args: argparse.Namespace
) -> None:
    """Train one architecture on one fold. Save the predictions of the best epoch and of the SWA."""
    logger = get_logger("submission")
    # ---------------------------------------------------------------- 2. the same seed each time
    seed_all(args.seed)

    # ---------------------------------------------------------------- 3, 4. data and model
    images, labels, test_images, test_labels = load_images(args.dataset)
    train, valid = folds[fold]
    valid_set, test_set = Images(images[valid], labels[valid]), Images(test_images, test_labels)
    train_loader: Batches = DataLoader(
        Images(images[train], labels[train], augment=True),
        args.batch_size,
        shuffle=True,
        drop_last=True,
    )
    model = ARCHITECTURES[name](images[0].numel()).to(device)
    optimizer = AdamW(model.parameters(), lr=args.lr)
    scheduler = CosineAnnealingLR(optimizer, T_max=args.num_epochs * len(train_loader))
    manager = CheckpointManager(
        run / "checkpoints", metric="loss", metric_minimization=True, save_n_best=3
    )
    last = resume(manager.logdir, model, optimizer, scheduler, loader=train_loader)
    done = last["epoch"] if last else 0

    # ---------------------------------------------------------------- 5. train
    for epoch in range(done + 1, args.num_epochs + 1):
        model.train()
        meter = AverageMeter()
        bar = tqdm(
            accumulate(train_loader, model),
            f"{name}, fold {fold}, epoch {epoch}",
            batch_size=args.batch_size,
            meters={"loss": meter},
            leave=False,
        )
        for batch, window in bar:
            x, y = to_device(batch, device)
            with window:
                loss = F.cross_entropy(model(x), y)
                window.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            meter.update(loss, len(y))
        (probability,) = predict(model, valid_set, device).gather()
        score = loss_of(valid_set.labels.numpy(), probability.numpy())
        logger.info(
            "%s, fold %d, epoch %2d: train loss %.4f, log loss %.4f",
            *(name, fold, epoch, meter.average, score),
        )
        checkpoint = make_checkpoint(
            *("train", epoch, model, optimizer, scheduler), loader=train_loader, folds=folds.hash
        )
        manager.process(score=score, epoch=epoch, checkpoint=checkpoint)

    # ---------------------------------------------------------------- 7. SWA of the best three
    best = best_checkpoints(manager.logdir, 3)
    plain = DataLoader(Images(images[train], labels[train]), batch_size=256)
    save_average(best, run / "swa.pth", model=model, loader=plain, device=device)

    for source, path in (("best", manager.best_path), ("swa", run / "swa.pth")):
        load_checkpoint(path, model)
        predict(model, valid_set, device).save(run / f"{source}_valid.parquet", ids=valid)
        predict(model, test_set, device).save(run / f"{source}_test.parquet")
    unfinished = run / "fold.unfinished"
    unfinished.write_text(json.dumps({"trained_on": folds.hash}))
    unfinished.replace(run / "fold.json")  # the last file: now the fold is finished


def collect(name: str, source: str, folds: Folds, root: Path) -> Path:
    """Put the predictions of all folds together. For the test, take the mean of the folds."""
    collected = OutOfFold(folds)
    for fold in range(FOLDS):
        run = root / name / f"fold_{fold}"
        valid = predictions.load(run / f"{source}_valid.parquet")
        test = predictions.load(run / f"{source}_test.parquet")
        known = json.loads((run / "fold.json").read_text())
        collected.add(fold, valid["probability"], test["probability"], **known)
    for part, probability in (("oof", collected.predictions), ("test", collected.test)):
        outputs = Predictions(len(probability))
        outputs.add(range(len(probability)), probability=probability)
        outputs.save(root / f"{name}_{source}_{part}.parquet")
    return root / f"{name}_{source}"


def blended(candidate: dict[str, Any], part: str) -> Any:
    """Blend the files of a candidate; `part` is "oof" or "test"."""
    paths = [f"{source}_{part}.parquet" for source in candidate["sources"]]
    return blend_files(paths, **candidate["options"], renormalise=True)


def main(args: argparse.Namespace, root: Path, device: torch.device) -> None:
    # ---------------------------------------------------------------- 1. prepare
    logger = get_logger("submission", log_file=root / "log.txt")
    _, labels, _, test_labels = load_images(args.dataset)
    folds = make_folds(labels, FOLDS, "stratified", seed=args.seed, path=root / "folds.csv")
    targets, test_targets = labels.numpy(), test_labels.numpy()

    # ---------------------------------------------------------------- 2 to 5. train all
    for name in ARCHITECTURES:
        for fold in range(FOLDS):
            run = root / name / f"fold_{fold}"
            if not (run / "fold.json").exists():
                train_fold(name, fold, folds, run, device, args)

    # ---------------------------------------------------------------- 6, 7. candidates
    sources = [
        collect(name, kind, folds, root) for name in ARCHITECTURES for kind in ("best", "swa")
    ]
    candidates: dict[str, dict[str, Any]] = {
        path.name.replace("_", " "): {"sources": [path], "options": {}} for path in sources
    }
    oof = {n: blended(each, "oof")["probability"].to_numpy() for n, each in candidates.items()}
    alike = correlation(oof)
    alike.plot(root / "correlation.png")
    print(f"\ncorrelations of the predictions\n{alike}")
    found = find_weights(oof, targets, "log_loss", folds=folds)
    print(f"\n{found}")
    for name, options in {**BLENDS, "weights": {"weights": [*found.weights.values()]}}.items():
        candidates[name] = {"sources": sources, "options": options}

    # ---------------------------------------------------------------- 8. test against validation
    rows = {}
    for name, candidate in candidates.items():
        p, q = (blended(candidate, part)["probability"].to_numpy() for part in ("oof", "test"))
        rows[name] = {
            "validation": float(np.mean([loss_of(targets[part], p[part]) for _, part in folds])),
            # The weights were found on these rows, so their score on unseen folds counts.
            "OOF": found.unseen_score if name == "weights" else loss_of(targets, p),
            "test": loss_of(test_targets, q),
            "OOF accuracy": accuracy_score(targets, p.argmax(1)),
            "test accuracy": accuracy_score(test_targets, q.argmax(1)),
        }
    columns = list(rows["weights"])
    print(f"\n{'log loss':20}" + "".join(f"{column:>15}" for column in columns))
    for name, row in rows.items():
        print(f"{name:20}" + "".join(f"{row[column]:15.4f}" for column in columns))
    (root / "table.json").write_text(json.dumps(rows, indent=2))

    # ---------------------------------------------------------------- 8. submit the best
    best = min(rows, key=lambda name: rows[name]["OOF"])
    blend = blended(candidates[best], "test")
    label = blend["probability"].to_numpy().argmax(1)
    blend.select("id", label=pl.Series(label)).write_csv(root / "submission.csv")
    known, test, accuracy = (rows[best][name] for name in ("OOF", "test", "test accuracy"))
    record_scores(root, validation=known, test=test, metric="log loss", metric_minimization=True)
    logger.info(
        "best OOF score: %s; test accuracy %.4f, test log loss %.4f, OOF %.4f, difference %.4f",
        *(best, accuracy, test, known, test - known),
    )
    print(f"\n{root} has submission.csv, table.json, correlation.png and all predictions")


if __name__ == "__main__":
    arguments = parse_args()
    # This resumes an unfinished run. If it had other arguments, `start_run` raises an error.
    with start_run(Path(arguments.logdir) / arguments.exp_name, arguments) as own_run:
        main(arguments, own_run.path, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
