"""Train a language model on tokens, in steps without epochs.

    torchrun --nproc-per-node=2 examples/lm/experiment.py

Takes 60 to 90 seconds on two CPU cores. Bits per byte: 2.7 to 2.8.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 (its usual name)
from datasets import VOCABULARY, EvenCrops, RandomCrops
from models import GPT
from prepare import prepare, standard_library
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from batteries import (
    AverageMeter,
    CheckpointManager,
    JsonLinesLogger,
    Loggers,
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
    start_run,
    to_device,
    unwrap,
)
from batteries.data import DataLoader
from batteries.progress import tqdm
from batteries.scoreboard import record_scores
from batteries.training import StepPolicy, Throughput, parameter_groups

Crops = DataLoader[Tensor]
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    option = parser.add_argument
    option("--exp-name", default="lm", help="the runs are LOGDIR/EXP_NAME/001, …")
    option("--logdir", default="runs")
    option("--tokens", default="runs/tokens", help="the output of prepare.py")
    option("--width", type=int, default=128)
    option("--depth", type=int, default=4)
    option("--heads", type=int, default=4)
    option("--dropout", type=float, default=0.0)
    option("--length", type=int, default=128, help="tokens in a crop")
    option("--batch-size", type=int, default=4, help="crops in a micro-batch of one process")
    option("--tokens-per-step", type=int, default=2048, help="tokens of all processes together")
    option("--steps", type=int, default=240)
    option("--warmup-steps", type=int, default=20)
    option("--eval-every", type=int, default=40, help="steps between evaluations")
    option("--eval-crops", type=int, default=256)
    option("--log-every", type=int, default=10, help="steps between log lines")
    option("--lr", type=float, default=2e-3)
    option("--weight-decay", type=float, default=0.1)
    option("--clip", type=float, default=1.0, help="largest norm of the gradient")
    option("--seed", type=int, default=42)
    option("--num-workers", type=int, default=0)
    option("--fsdp", action="store_true", help="divide the model among the ranks (FSDP2)")
    option("--precision", choices=PRECISIONS, help="default: bf16 on a GPU, fp32 on a CPU")
    option("--compile", action="store_true", help="use torch.compile for each block")
    option("--peak-tflops", type=float, help="of one device, for MFU; 989 for an H100 in bf16")
    option("--time-limit", help="save and stop before this time, such as 8h50m")
    option("--continue", dest="resume", action="store_true", help="resume the newest run")
    return parser.parse_args()


def warmup_and_cosine(warmup: int, steps: int, least: float = 0.1) -> Callable[[int], float]:
    """Make the schedule: the rate rises linearly, then falls to a tenth along a cosine."""

    def part(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return least + (1 - least) * (1 + math.cos(math.pi * done)) / 2

    return part


def divide(model: GPT) -> nn.Module:
    """Divide parameters, gradients and optimizer states among the ranks (FSDP2)."""
    if not dist.is_initialized():
        raise SystemExit("--fsdp needs ranks: torchrun --nproc-per-node=N experiment.py --fsdp")
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    return model


def loss_of(model: nn.Module, crops: Tensor, precision: torch.dtype) -> Tensor:
    mixed = precision != torch.float32
    with torch.autocast(crops.device.type, precision if mixed else None, enabled=mixed):
        logits = model(crops[:, :-1])  # (batch, length, vocabulary)
    return F.cross_entropy(logits.float().flatten(0, 1), crops[:, 1:].flatten())


@torch.no_grad()  # FSDP2 does not support inference_mode
def evaluate(
    model: nn.Module, loader: Crops, device: torch.device, precision: torch.dtype
) -> float:
    """Compute the bits per byte over all ranks."""
    model, loss = unwrap(model, keep_compile=True).eval(), AverageMeter()
    for batch in loader:
        crops = to_device(batch, device)
        loss.update(loss_of(model, crops, precision), len(crops))
    model.train()
    return loss.all_reduce() / math.log(2)


def experiment(run: Path, args: argparse.Namespace, device: torch.device) -> None:
    # ---------------------------------------------------------------- 1. prepare the environment
    logger = get_logger("experiment", log_file=run / "log.txt")
    folder, ranks = Path(args.tokens), distributed.world_size()
    with distributed.rank_zero_first():
        if not (folder / "test.bin").exists():
            prepare(standard_library(), folder)
    precision = PRECISIONS[args.precision or ("bf16" if device.type == "cuda" else "fp32")]
    crops_per_step = args.tokens_per_step // args.length
    accumulation_steps, rest = divmod(crops_per_step, args.batch_size * ranks)
    if rest or args.tokens_per_step % args.length or not accumulation_steps:
        raise SystemExit(
            f"--tokens-per-step {args.tokens_per_step} must be a multiple of "
            f"--length {args.length} x --batch-size {args.batch_size} x {ranks} processes"
        )
    logger.info("%s on %d x %s, %s", run, ranks, device.type, precision)

    # ---------------------------------------------------------------- 2. seed everything
    seed_all(args.seed)  # the same seed on every rank, so the same weights

    # ---------------------------------------------------------------- 3. data
    # One pass over the loader is the whole training. The crops of a step depend on the seed and the
    # step, and not on the number of ranks or workers.
    crops = RandomCrops(folder / "train.bin", args.length, args.steps * crops_per_step)
    loader: Crops = DataLoader(crops, args.batch_size, num_workers=args.num_workers)
    number = args.eval_crops // ranks * ranks  # FSDP2 needs the same number of batches on each rank
    valid, test = (
        DataLoader(EvenCrops(folder / f"{part}.bin", args.length, number), args.batch_size)
        for part in ("valid", "test")
    )

    # ---------------------------------------------------------------- 4. model and optimizer
    names = ("width", "depth", "heads", "dropout")
    model_args = {"vocabulary": VOCABULARY, **{name: getattr(args, name) for name in names}}
    bare = GPT(**model_args).to(device)
    throughput = Throughput(peak_flops=args.peak_tflops and args.peak_tflops * 1e12)
    with throughput.count_flops(args.length):
        loss_of(bare, to_device(crops[0][None], device), precision).backward()  # type: ignore[no-untyped-call]
    bare.zero_grad(set_to_none=True)
    for block in bare.blocks if args.compile else ():
        block.compile()  # in place, so the weights keep their names
    model = divide(bare) if args.fsdp else distribute(bare, device)
    optimizer = AdamW(parameter_groups(model, args.weight_decay), lr=args.lr, betas=(0.9, 0.95))
    scheduler = LambdaLR(optimizer, warmup_and_cosine(args.warmup_steps, args.steps))
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    policy = StepPolicy("skip", scaler=scaler)  # skip steps whose gradient is not finite
    kept: dict[str, Any] = {"metric": "bits_per_byte", "metric_minimization": True}
    manager = CheckpointManager(run / "checkpoints", **kept, save_n_best=0, sharded=args.fsdp)
    loggers = Loggers(TensorBoardLogger(run / "tensorboard"), JsonLinesLogger(run))
    objects: dict[str, Any] = {
        "optimizer": optimizer,
        "scheduler": scheduler,
        "scaler": scaler,
        "policy": policy,
        "loader": loader,
        "loggers": loggers,
    }
    notes: dict[str, Any] = {"experiment_args": args, "model_args": model_args}
    last = resume(manager.logdir, model, **objects)
    step = last["epoch"] if last else 0
    if last:
        logger.info("resumed after step %d", step)

    # ---------------------------------------------------------------- 5. train
    model.train()
    meter = AverageMeter()  # the loss since the last log line
    windows = throughput.watch(accumulate(loader, model, accumulation_steps, scaler=scaler))
    with loggers, PreemptionGuard(time_limit=args.time_limit) as guard:
        for batch, window in tqdm(windows, "train", meters={"loss": meter}, leave=False):
            with window:  # the ranks share gradients once in each window
                loss = loss_of(model, to_device(batch, device), precision)
                window.backward(loss)
            meter.update(loss, len(batch))
            throughput.update(len(batch) * args.length)
            if not window.closed:
                continue
            step += 1
            norm = window.clip(optimizer, args.clip)
            if policy.accepts(norm, loss) and window.step(optimizer):
                scheduler.step()
            optimizer.zero_grad(set_to_none=True)

            if step % args.log_every == 0:
                metrics = {"loss": meter.all_reduce(), "norm": norm, **throughput.compute()}
                metrics["lr"] = scheduler.get_last_lr()[0]
                loggers.log_metrics({"train": metrics}, step)
                logger.info("step %4d: loss %.4f", step, metrics["loss"])
                meter.reset()
            if step % args.eval_every == 0 or step == args.steps:
                with throughput.paused():
                    score = evaluate(model, valid, device, precision)
                    loggers.log_metrics({"valid": {"bits_per_byte": score}}, step)
                    logger.info("step %4d: validation bits per byte %.4f", step, score)
                    checkpoint = make_checkpoint("train", step, model, **objects, **notes)
                    manager.process(score=score, epoch=step, checkpoint=checkpoint)
            if guard.stop() and step < args.steps:  # the same answer on all ranks
                manager.save_last(make_checkpoint("train", step, model, **objects, **notes))
                logger.info("stopped after step %d; use --continue to resume", step)
                raise SystemExit(guard.exit_code)

    # ---------------------------------------------------------------- 6. test against validation
    distributed.barrier()  # rank 0 may still be writing
    load_checkpoint(manager.best_path, model)
    found, expected = (evaluate(model, part, device, precision) for part in (test, valid))
    logger.info("test bits per byte %.4f, validation %.4f", found, expected)
    if distributed.is_main():
        record_scores(run, validation=expected, test=found)


if __name__ == "__main__":
    arguments = parse_args()
    logdir = Path(arguments.logdir) / arguments.exp_name
    free = ["resume", "num_workers", "time_limit", "batch_size", "log_every", "peak_tflops"]
    with (
        distributed.setup() as own_device,
        start_run(logdir, arguments, new=not arguments.resume, may_differ=free) as own_run,
    ):
        experiment(own_run.path, arguments, own_device)
