"""The time of the loop of examples/lm, of the same loop by hand, and of other libraries' loops.

Every contender trains the example's model on the same crops, in windows of 2 micro-batches, and
ends with the same weights, which is checked. All clip, leave out a step that is not finite, follow
a schedule, average the loss, count tokens a second and show a progress bar.
"""

from __future__ import annotations

import math
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from loop import Loop, check_equal
from measure import peer, report, take_turns
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader as TorchLoader
from tqdm.auto import tqdm

from batteries import AverageMeter, PreemptionGuard, accumulate, progress, to_device
from batteries.data import DataLoader
from batteries.training import StepPolicy, Throughput

EXAMPLE = Path(__file__).parents[1] / "examples/lm"
ACCUMULATION_STEPS, BATCH_SIZE, LENGTH, STEPS = 2, 4, 128, 2
TURNS = 40
DEVICE = torch.device("cpu")

Tokens: Any = runpy.run_path(str(EXAMPLE / "datasets.py"))["Tokens"]


class Crops(Tokens):  # type: ignore[misc]
    """The same crops in each pass and for each contender. Drawing one takes as long as usual."""

    def __getitem__(self, index: int) -> Tensor:
        torch.randint(self.starts, ())
        return self.crop(index * 9973 % self.starts)  # type: ignore[no-any-return]


def make_parts() -> tuple[nn.Module, AdamW, LambdaLR]:
    torch.manual_seed(0)
    model = runpy.run_path(str(EXAMPLE / "models.py"))["GPT"]()
    optimizer = AdamW(model.parameters(), lr=1e-3)
    return model, optimizer, LambdaLR(optimizer, lambda step: 1 / (1 + step / 1000))


def loss_of(model: nn.Module, crops: Tensor) -> Tensor:
    logits = model(crops[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), crops[:, 1:].flatten())


def by_hand(crops: Crops, stream: TextIO) -> Loop:
    model, optimizer, scheduler = make_parts()
    loader: TorchLoader[Tensor] = TorchLoader(crops, BATCH_SIZE)

    def run() -> None:
        total, tokens, begun = 0.0, 0, time.perf_counter()
        for step, batch in enumerate(tqdm(loader, file=stream), start=1):
            loss = loss_of(model, batch.to(DEVICE))
            (loss / ACCUMULATION_STEPS).backward()  # type: ignore[no-untyped-call]
            total += loss.item()
            tokens += len(batch) * crops.length
            if step % ACCUMULATION_STEPS == 0:
                norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                if math.isfinite(norm) and loss.isfinite():
                    optimizer.step()
                    scheduler.step()
                optimizer.zero_grad(set_to_none=True)
        assert tokens / (time.perf_counter() - begun) > 0

    return Loop(model, run)


def ours(crops: Crops, stream: TextIO, guard: PreemptionGuard) -> Loop:
    model, optimizer, scheduler = make_parts()
    loader: DataLoader[Tensor] = DataLoader(crops, BATCH_SIZE)
    policy, throughput, meter = StepPolicy("skip"), Throughput(), AverageMeter()
    windows = throughput.watch(accumulate(loader, model, ACCUMULATION_STEPS))

    def run() -> None:
        for batch, window in progress.tqdm(windows, meters={"loss": meter}, file=stream):
            with window:
                loss = loss_of(model, to_device(batch, DEVICE))
                window.backward(loss)
            meter.update(loss, len(batch))
            throughput.update(len(batch) * crops.length)
            if not window.closed:
                continue
            norm = window.clip(optimizer, 1.0)
            if policy.accepts(norm, loss) and window.step(optimizer):
                scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            assert not guard.stop()
        assert throughput.compute()["items_per_second"] > 0
        meter.reset()

    return Loop(model, run)


def with_accelerate(crops: Crops, stream: TextIO) -> Loop | None:
    accelerate = peer("accelerate")
    if accelerate is None:
        return None
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION_STEPS)
    model, optimizer, scheduler, loader = accelerator.prepare(
        *make_parts(), TorchLoader(crops, BATCH_SIZE)
    )

    def run() -> None:
        total, tokens, begun = 0.0, 0, time.perf_counter()
        for batch in tqdm(loader, file=stream):
            with accelerator.accumulate(model):
                loss = loss_of(model, batch)
                accelerator.backward(loss)
                finite = True
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    finite = math.isfinite(norm) and bool(loss.isfinite())
                if finite:
                    optimizer.step()
                    scheduler.step()
                optimizer.zero_grad()
            total += loss.item()
            tokens += len(batch) * crops.length
        assert tokens / (time.perf_counter() - begun) > 0

    return Loop(model, run)


def with_fabric(crops: Crops, stream: TextIO) -> Loop | None:
    fabric_module = peer("lightning.fabric")
    if fabric_module is None:
        return None
    fabric = fabric_module.Fabric(accelerator="cpu", devices=1)
    bare_model, bare_optimizer, scheduler = make_parts()
    model, optimizer = fabric.setup(bare_model, bare_optimizer)
    loader = fabric.setup_dataloaders(TorchLoader(crops, BATCH_SIZE))

    def run() -> None:
        total, tokens, begun = 0.0, 0, time.perf_counter()
        for step, batch in enumerate(tqdm(loader, file=stream), start=1):
            last = step % ACCUMULATION_STEPS == 0
            with fabric.no_backward_sync(model, enabled=not last):
                loss = loss_of(model, batch)
                fabric.backward(loss / ACCUMULATION_STEPS)
            total += loss.item()
            tokens += len(batch) * crops.length
            if last:
                norm = fabric.clip_gradients(model, optimizer, max_norm=1.0)
                if math.isfinite(norm) and loss.isfinite():
                    optimizer.step()
                    scheduler.step()
                optimizer.zero_grad()
        assert tokens / (time.perf_counter() - begun) > 0

    return Loop(bare_model, run)


class Around:
    """A clock of the processor that stands still in the model's forward and backward passes."""

    def __init__(self) -> None:
        self.inside = 0.0
        for place, name in ((sys.modules[__name__], "loss_of"), (Tensor, "backward")):
            setattr(place, name, self.left_out(getattr(place, name)))

    def left_out(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            begun = time.process_time()
            result = function(*args, **options)
            self.inside += time.process_time() - begun
            return result

        return timed

    def __call__(self) -> float:
        return time.process_time() - self.inside


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as stream,  # noqa: PTH123
        PreemptionGuard() as guard,
    ):
        text = Path(folder) / "text.bin"
        text.write_bytes(b"".join(path.read_bytes() for path in EXAMPLE.glob("*.py")))
        crops = Crops(text, LENGTH, STEPS * ACCUMULATION_STEPS * BATCH_SIZE)
        loops = {
            "by hand": by_hand(crops, stream),
            "by hand again": by_hand(crops, stream),
            "batteries": ours(crops, stream, guard),
            "accelerate": with_accelerate(crops, stream),
            "Lightning Fabric": with_fabric(crops, stream),
        }
        check_equal(loops, reference="by hand")
        contenders = {name: loop and loop.run for name, loop in loops.items()}
        # Processor time, because other programs may use the cores.
        options: dict[str, Any] = {"turns": TURNS, "steps": STEPS}
        timings = take_turns(contenders, **options, clock=time.process_time)
        report("language_model: a step", timings, reference="by hand", added=True, unit="ms")
        timings = take_turns(contenders, **options, clock=Around())
        title = "language_model: a step without its forward and backward passes"
        report(title, timings, reference="by hand", added=True, unit="ms")
