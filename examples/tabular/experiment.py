"""Take part in a competition with a table: first look, models, blend, cut-off and submission.

    python examples/tabular/experiment.py

Takes about a minute on two CPU cores. Private F1 of the chosen submission: 0.61 to 0.65.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import prepare
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from datasets import NUMBERS, Rows, Table, load
from datasets import prepare as prepared
from models import Net, boosted
from numpy.typing import NDArray
from score import score
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from torch.optim import AdamW

from batteries import (
    AverageMeter,
    Predictions,
    PreemptionGuard,
    accumulate,
    get_logger,
    seed_all,
    start_run,
)
from batteries.blend import check_submission, correlation, find_threshold, find_weights, mean, stack
from batteries.data import DataLoader
from batteries.scoreboard import record_scores
from batteries.splits import Folds, OutOfFold, check_folds, look, make_folds

FOLDS = 5


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--exp-name", default="tabular", help="the name of the runs' directory")
    parser.add_argument("--logdir", default="runs")
    parser.add_argument("--visits", type=int, default=60, help="rows for each of the 90 shops")
    parser.add_argument("--num-epochs", type=int, default=12, help="epochs of the net")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--time-limit", help="such as 8h50m; leave out folds that would end later")
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args()


def train_net(
    train: Table, targets: NDArray[Any], others: list[Table], codes: list[int], args: Any
) -> list[NDArray[Any]]:
    """Train a net on some rows, and return its probabilities for the rows of other tables."""
    seed_all(args.seed)
    model = Net(2 * len(NUMBERS), codes)
    optimizer = AdamW(model.parameters(), lr=args.lr, weight_decay=0.1)
    loader = DataLoader(Rows(train, train, targets), args.batch_size, shuffle=True, drop_last=True)
    for _ in range(args.num_epochs):
        model.train()
        meter = AverageMeter()
        for (numbers, own_codes, y), window in accumulate(loader, model):
            with window:
                loss = F.binary_cross_entropy_with_logits(model(numbers, own_codes), y)
                window.backward(loss)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            meter.update(loss, len(y))
    get_logger("tabular").info("  last training loss of the net: %.4f", meter.average)
    model.eval()
    with torch.inference_mode():
        rows = [Rows(other, train) for other in others]
        return [model(own.numbers, own.codes).sigmoid().numpy() for own in rows]


def train_all(
    table: Table, test: Table, targets: NDArray[Any], folds: Folds, codes: list[int], args: Any
) -> dict[str, OutOfFold]:
    """Train all models on each fold, as long as there is time. Return their predictions."""
    logger = get_logger("tabular")
    trees = boosted(list(range(len(NUMBERS), len(NUMBERS) + len(codes))), args.seed)
    names = [*trees, "net"]
    oof = {name: OutOfFold(folds, allow_missing=True) for name in names}
    with PreemptionGuard(time_limit=args.time_limit) as guard:
        for fold, (train, valid) in enumerate(folds):  # all models of a fold before the next fold
            for name in names:
                parts = [table.of(valid), test]
                if name == "net":
                    own = train_net(table.of(train), targets[train], parts, codes, args)
                else:
                    model = clone(trees[name]).fit(table.of(train).features, targets[train])
                    own = [model.predict_proba(part.features)[:, 1] for part in parts]
                oof[name].add(fold, own[0], own[1])
            logger.info("fold %d: %d rows, %d for validation", fold, len(train), len(valid))
            if guard.stop() and fold > 0:  # one fold alone cannot compare models
                logger.info("%s: %d of %d folds are done", guard.why, fold + 1, len(folds))
                break
    return oof


def submit(
    name: str, labels: NDArray[Any], scores: dict[str, Any], data: Path, root: Path
) -> dict[str, float]:
    """Write a submission, check it and send it. Return its scores, with both leaderboards."""
    folder = root / "submissions" / name.replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    sample = pl.read_csv(data / "sample_submission.csv")
    path = folder / "submission.csv"
    sample.with_columns(returns=pl.Series(labels)).write_csv(path)
    check_submission(path, data / "sample_submission.csv", ranges={"returns": (0, 1)})
    public, private = (score(data, path, part) for part in (True, False))
    record_scores(root, leaderboard=public, file=path, message=name)
    return {**scores, "public": public, "private": private}


def explain(rows: dict[str, Any], best: str, spread: float, of_fold: float, test: int) -> None:
    """Print all scores, and the size of a gap that chance alone can make."""
    columns = list(rows[best])
    print(f"\n{'F1':12}" + "".join(f"{column:>12}" for column in columns))
    for name, row in rows.items():
        print(f"{name:12}" + "".join(f"{row[column]:12.4f}" for column in columns))
    print("\nvalidation: each cut-off was found on the other folds; OOF: on the same rows.")
    for part, share in (("public", 0.3), ("private", 0.7)):
        gap = rows[best][part] - rows[best]["validation"]
        noise = 2 * spread * (of_fold / (share * test)) ** 0.5
        kind = "chance can explain this" if abs(gap) <= noise else "more than chance"
        print(
            f"{best}: {part} - validation is {gap:+.4f}. Folds of {of_fold:.0f} rows have a "
            f"standard deviation of {spread:.4f}, so the score of {share * test:.0f} rows can be "
            f"±{noise:.4f} off: {kind}."
        )


def main(args: argparse.Namespace, root: Path) -> None:
    # ---------------------------------------------------------------- 1. data, and a first look
    logger = get_logger("tabular", log_file=root / "log.txt")
    data = root / "data"
    prepare.main(data, args.visits)
    train, test = load(data)
    targets = train["returns"].to_numpy()
    seen = look(train, test, "returns", groups="shop")
    seen.plot(root / "look.png")
    shifted = seen.columns.filter(pl.col("tells test") > 0.05)["column"].to_list()
    told_by = ", ".join(shifted)
    logger.info("a classifier can tell test from train: AUC %.2f, by %s", seen.auc, told_by)
    [known] = seen.columns.filter(pl.col("column") == "shop")["known in test"]
    logger.info(
        "%.0f %% of the test rows are of shops in train, so folds are made by shop", 100 * known
    )
    table, test_table, codes = prepared(train, test)  # without the counter and the year

    # ---------------------------------------------------------------- 1. folds by group
    options: Any = {"targets": "returns", "groups": "shop", "path": root / "folds.csv"}
    folds = make_folds(train, FOLDS, "stratified_group", args.seed, **options)
    print(check_folds(folds, "returns", groups="shop", data=train))

    # ---------------------------------------------------------------- 2 to 5. train
    oof = train_all(table, test_table, targets, folds, codes, args)
    predicted = {name: own.predictions for name, own in oof.items()}
    unseen = {name: own.test for name, own in oof.items()}
    for name, collected in oof.items():
        oof_score = collected.score(targets, "roc_auc")
        logger.info("%s: out-of-fold AUC %.4f, %d rows", name, oof_score.value, oof_score.rows)
        outputs = Predictions(folds.rows)
        outputs.add(range(folds.rows), probability=collected.predictions, target=targets)
        outputs.save(root / f"{name}_oof.parquet", ids=train["id"].to_numpy())

    # ---------------------------------------------------------------- 7. blend and stack
    done = ~np.isnan(predicted["net"])
    print(f"\ncorrelations\n{correlation({name: p[done] for name, p in predicted.items()})}")
    how: dict[str, Any] = {"folds": folds, "allow_missing": True}
    found = find_weights(predicted, targets, "roc_auc", **how)
    second = stack(predicted, targets, LogisticRegression(C=0.1), "roc_auc", **how)
    print(f"\n{found}\n{second}")
    candidates = {name: (predicted[name], unseen[name]) for name in oof} | {
        "mean": (np.mean([*predicted.values()], axis=0), mean(unseen)),
        "weights": (sum(w * predicted[n] for n, w in found.weights.items()), found.blend(unseen)),
        "stack": (second.oof, second.predict(unseen)),
    }

    # ---------------------------------------------------------------- 7. cut-offs, submissions
    rows, spreads = {}, {}
    for name, (own, there) in candidates.items():
        cut = find_threshold(own, targets, "f1", candidates=25, **how)
        labels = (there >= cut.value).astype(int)
        scores = {"validation": cut.unseen_score, "OOF": cut.score}
        rows[name] = submit(name, labels, scores, data, root)
        parts = [valid for _, valid in folds if not np.isnan(own[valid]).any()]
        cuts = zip(parts, cut.folds, strict=True)
        by_fold = [f1_score(targets[valid], own[valid] >= value) for valid, value in cuts]
        spreads[name] = float(np.std(by_fold, ddof=1))

    # ---------------------------------------------------------------- 6, 8. choose by validation
    doubtful: dict[str, Any] = {"weights": found, "stack": second}
    honest = [name for name in rows if name not in doubtful or doubtful[name].beats_both]
    best = max(honest, key=lambda name: rows[name]["validation"])
    explain(rows, best, spreads[best], len(targets) / FOLDS, len(test))
    table_of_scores = {name: {**row, "spread": spreads[name]} for name, row in rows.items()}
    (root / "table.json").write_text(json.dumps(table_of_scores, indent=2))
    chosen = root / "submissions" / best / "submission.csv"
    number = check_submission(chosen, data / "sample_submission.csv")
    record_scores(root, validation=rows[best]["validation"], metric="F1", metric_minimization=False)
    record_scores(root, leaderboard={"private": rows[best]["private"]}, file=chosen)
    logger.info(
        "chosen by validation: %s; validation %.4f, public %.4f, private F1 %.4f",
        *(best, rows[best]["validation"], rows[best]["public"], rows[best]["private"]),
    )
    print(f"\n{chosen} has {number} rows, like the sample; {root} has the whole run")


if __name__ == "__main__":
    arguments = parse_args()
    with start_run(Path(arguments.logdir) / arguments.exp_name, arguments) as own_run:
        main(arguments, own_run.path)
