"""The time that a training step takes beyond that of the bare PyTorch loop.

Every contender trains the same tiny model on the same batches with windows of 4 micro-batches, and
ends with the same weights, which is checked. The bare loop does nothing else; the others also move
the batch to the device, average the loss and show a progress bar. The batches are in a list, so
loading them takes no time. Where a library has no meter, its row has a sum in plain python.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TextIO

import torch
from measure import Contender, peer, report, take_turns
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from tqdm.auto import tqdm

from batteries import AverageMeter, progress, to_device

STEPS = 1000
ACCUMULATION_STEPS = 4
TURNS = 25
DEVICE = torch.device("cpu")

Batch = tuple[Tensor, Tensor]


class Loop(NamedTuple):
    model: nn.Module
    run: Contender  # one pass over the batches


def make_batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(4, 8, generator=generator), torch.randn(4, 1, generator=generator))
        for _ in range(STEPS)
    ]


def make_model() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def bare(batches: list[Batch]) -> Loop:
    model, optimizer = make_model()

    def run() -> None:
        for step, (x, y) in enumerate(batches, start=1):
            loss = mse_loss(model(x), y)
            (loss / ACCUMULATION_STEPS).backward()  # type: ignore[no-untyped-call]
            if step % ACCUMULATION_STEPS == 0:
                optimizer.step()
                optimizer.zero_grad()

    return Loop(model, run)


def by_hand(batches: list[Batch], stream: TextIO) -> Loop:
    """The same things written by hand, with no library but tqdm."""
    model, optimizer = make_model()

    def run() -> None:
        total, count = 0.0, 0
        for step, (x, y) in enumerate(tqdm(batches, file=stream), start=1):
            x, y = x.to(DEVICE), y.to(DEVICE)
            loss = mse_loss(model(x), y)
            (loss / ACCUMULATION_STEPS).backward()  # type: ignore[no-untyped-call]
            total += loss.item() * x.shape[0]
            count += x.shape[0]
            if step % ACCUMULATION_STEPS == 0:
                optimizer.step()
                optimizer.zero_grad()

    return Loop(model, run)


def ours(batches: list[Batch], stream: TextIO) -> Loop:
    model, optimizer = make_model()

    def run() -> None:
        steps = len(batches)
        meter = AverageMeter()
        for step, batch in enumerate(progress.tqdm(batches, file=stream)):
            x, y = to_device(batch, DEVICE)
            loss = mse_loss(model(x), y)
            window = min(
                ACCUMULATION_STEPS, steps - step // ACCUMULATION_STEPS * ACCUMULATION_STEPS
            )
            (loss / window).backward()  # type: ignore[no-untyped-call]
            meter.update(loss, x.shape[0])
            if (step + 1) % ACCUMULATION_STEPS == 0 or step + 1 == steps:
                optimizer.step()
                optimizer.zero_grad()

    return Loop(model, run)


def with_accelerate(batches: list[Batch], stream: TextIO) -> Loop | None:
    accelerate, utils = peer("accelerate"), peer("accelerate.utils")
    if accelerate is None or utils is None:
        return None
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION_STEPS)
    model, optimizer = accelerator.prepare(*make_model())

    def run() -> None:
        total, count = 0.0, 0
        for batch in utils.tqdm(batches, file=stream):
            x, y = utils.send_to_device(batch, accelerator.device)
            with accelerator.accumulate(model):
                loss = mse_loss(model(x), y)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            total += loss.item() * x.shape[0]
            count += x.shape[0]

    return Loop(model, run)


def with_fabric(batches: list[Batch], stream: TextIO) -> Loop | None:
    fabric_module = peer("lightning.fabric")
    if fabric_module is None:
        return None
    fabric = fabric_module.Fabric(accelerator="cpu", devices=1)
    bare_model, bare_optimizer = make_model()
    model, optimizer = fabric.setup(bare_model, bare_optimizer)

    def run() -> None:
        total, count = 0.0, 0
        for step, batch in enumerate(tqdm(batches, file=stream), start=1):
            x, y = fabric.to_device(batch)
            last = step % ACCUMULATION_STEPS == 0
            with fabric.no_backward_sync(model, enabled=not last):
                loss = mse_loss(model(x), y)
                fabric.backward(loss / ACCUMULATION_STEPS)
            total += loss.item() * x.shape[0]
            count += x.shape[0]
            if last:
                optimizer.step()
                optimizer.zero_grad()

    return Loop(bare_model, run)


def with_ignite(batches: list[Batch], stream: TextIO) -> Loop | None:
    engine, handlers, metrics = (
        peer(f"ignite.{module}") for module in ["engine", "handlers", "metrics"]
    )
    if engine is None or handlers is None or metrics is None:
        return None
    model, optimizer = make_model()
    trainer = engine.create_supervised_trainer(
        model, optimizer, mse_loss, DEVICE, gradient_accumulation_steps=ACCUMULATION_STEPS
    )
    metrics.RunningAverage(output_transform=lambda loss: loss).attach(trainer, "loss")
    handlers.ProgressBar(file=stream).attach(trainer, ["loss"])
    return Loop(model, lambda: trainer.run(batches, max_epochs=1))


@contextlib.contextmanager
def terminal() -> Iterator[tuple[TextIO, Callable[[], None]]]:
    """A pseudo terminal to write to, and a function that empties it: a full one blocks."""
    reading, writing = os.openpty()
    os.set_blocking(reading, False)

    def empty() -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(reading, 65536):
                pass

    with os.fdopen(writing, "w") as stream:
        yield stream, empty
    os.close(reading)


def check_equal(loops: Mapping[str, Loop | None], reference: str) -> None:
    """Train each model once. If a contender did other work, its weights would differ."""
    for loop in loops.values():
        if loop is not None:
            loop.run()
    expected = loops[reference]
    assert expected is not None
    for loop in loops.values():
        if loop is not None:
            for weight, wanted in zip(
                loop.model.parameters(), expected.model.parameters(), strict=True
            ):
                torch.testing.assert_close(weight, wanted)


def pieces(batches: list[Batch], log_file: TextIO) -> dict[str, Contender]:
    """Each thing that our loop adds, on its own, STEPS times."""
    model, _ = make_model()
    loss = mse_loss(model(batches[0][0]), batches[0][1])
    meter = AverageMeter()

    def nothing() -> None:
        for _ in batches:
            pass

    def bar() -> None:
        for _ in progress.tqdm(batches, file=log_file):
            pass

    def move() -> None:
        for batch in batches:
            to_device(batch, DEVICE)

    def bare_move() -> None:
        for x, y in batches:
            x.to(DEVICE)
            y.to(DEVICE)

    def average() -> None:
        for x, _ in batches:
            meter.update(loss, x.shape[0])

    def bare_sum() -> None:
        total, count = 0.0, 0
        for x, _ in batches:
            total += loss.item() * x.shape[0]
            count += x.shape[0]

    def windows() -> None:
        steps = len(batches)
        for step, _ in enumerate(batches):
            min(ACCUMULATION_STEPS, steps - step // ACCUMULATION_STEPS * ACCUMULATION_STEPS)

    return {
        "an empty loop": nothing,
        "progress.tqdm": bar,
        "to_device": move,
        "  two bare .to(device)": bare_move,
        "AverageMeter.update": average,
        "  a sum of loss.item()": bare_sum,
        "the size of the window": windows,
    }


def main() -> None:
    batches = make_batches()
    with open(os.devnull, "w") as log_file, terminal() as (screen, empty_screen):  # noqa: PTH123
        in_terminal = ours(batches, screen)

        def run_in_terminal() -> None:
            in_terminal.run()
            empty_screen()

        loops = {
            "bare PyTorch": bare(batches),
            "the same by hand, bar in a file": by_hand(batches, log_file),
            "batteries, bar in a file": ours(batches, log_file),
            "batteries, bar in a terminal": Loop(in_terminal.model, run_in_terminal),
            "accelerate": with_accelerate(batches, log_file),
            "Lightning Fabric": with_fabric(batches, log_file),
            "ignite": with_ignite(batches, log_file),
        }
        check_equal(loops, reference="bare PyTorch")
        contenders = {name: loop and loop.run for name, loop in loops.items()}
        timings = take_turns(contenders, turns=TURNS, steps=STEPS)
        report("loop: one training step", timings, reference="bare PyTorch", added=True)
        timings = take_turns(pieces(batches, log_file), turns=TURNS, steps=STEPS)
        report("loop: our pieces, one call", timings, reference="an empty loop", added=True)
