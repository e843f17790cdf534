"""Makes the pictures of the manual out of real runs: `make pictures`. It needs Chromium.

The runs are a sweep over digits: three learning rates, two widths, two seeds.
"""

from __future__ import annotations

import base64
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from batteries import (
    AverageMeter,
    CheckpointManager,
    JsonLinesLogger,
    make_checkpoint,
    seed_all,
    start_run,
)
from batteries.report import write_report
from batteries.scoreboard import record_scores

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from browser import Page, browser

PICTURES = Path(__file__).parent / "pictures"
EPOCHS = 15
COLOURS = 256  # of a PNG file
COLUMNS = 96  # of a terminal

TRAIN = """
import time, torch
from batteries import AverageMeter, seed_all
from batteries.progress import tqdm

seed_all(42)
for epoch in range(1, 4):
    loss = AverageMeter()
    for step in tqdm(range(200), f"epoch {epoch}", batch_size=64, meters={"loss": loss}):
        time.sleep(0.008)
        loss.update(2 / (200 * epoch + step) ** 0.5)
"""

# ---------------------------------------------------------------- runs


def train(logdir: Path, args: dict[str, Any]) -> None:
    """One run of the sweep."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    rest, valid, test = order[:1000], order[1000:1400], order[1400:]
    seed_all(args["seed"])
    model = nn.Sequential(nn.Linear(64, args["width"]), nn.ReLU(), nn.Linear(args["width"], 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=args["lr"], momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    with start_run(logdir, args, new=True) as run, JsonLinesLogger(run) as logger:
        manager = CheckpointManager(
            run.path / "checkpoints", "accuracy", metric_minimization=False, save_n_best=1
        )
        for epoch in range(1, EPOCHS + 1):
            meter = AverageMeter()
            for batch in rest[torch.randperm(len(rest))].split(100):
                loss = F.cross_entropy(model(x[batch]), y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                meter.update(loss, len(batch))
            scores = evaluate(model, x[valid], y[valid])
            logger.log_metrics(
                {
                    "train": {"loss": meter.average},
                    "valid": scores,
                    "lr": scheduler.get_last_lr()[0],
                },
                epoch,
            )
            scheduler.step()
            checkpoint = make_checkpoint("train", epoch, model, optimizer)
            manager.process(scores["accuracy"], epoch, checkpoint)
    record_scores(run, test=evaluate(model, x[test], y[test])["accuracy"])


@torch.no_grad()
def evaluate(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    logits = model(x)
    right = (logits.argmax(1) == y).float().mean()
    return {"loss": float(F.cross_entropy(logits, y)), "accuracy": float(right)}


# ---------------------------------------------------------------- terminals


def typed(command: Sequence[str], directory: Path) -> str:
    """All that a command writes into a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [sys.executable, *command], cwd=directory, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    found = b""
    while True:
        try:
            found += os.read(ours, 2**16)
        except OSError:  # the terminal is closed
            break
    os.close(ours)
    assert process.wait() == 0, found
    return found.decode()


def screen(text: str) -> list[str]:
    """The lines that are seen in the end: what follows a carriage return replaces its line."""
    lines = text.replace("\r\n", "\n").split("\n")
    return [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in lines if line]


def terminal(name: str, command: str, lines: Sequence[str]) -> None:
    """Text as the picture of a terminal."""
    wide, tall, left, top = 7.8, 19, 18, 50
    width, height = 2 * left + wide * COLUMNS, top + tall * len(lines) + tall
    rows = []
    for number, line in enumerate([f"$ {command}", *lines]):
        if line:
            look = "p" if number == 0 else "t"
            rows.append(
                f'<text class="{look}" x="{left}" y="{top + tall * number}" '
                f'textLength="{wide * len(line):.1f}" xml:space="preserve">{escape(line)}</text>'
            )
    dots = "".join(
        f'<circle cx="{22 + 18 * place}" cy="20" r="5.5" fill="{fill}"/>'
        for place, fill in enumerate(["#ff5f57", "#febc2e", "#28c840"])
    )
    style = "text{font:13px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace}"
    style += ".t{fill:#d7dce2}.p{fill:#7ee0a8}"
    (PICTURES / f"{name}.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}"><style>{style}</style>'
        f'<rect width="100%" height="100%" rx="9" fill="#1b1f26"/>{dots}{"".join(rows)}</svg>\n'
    )


# ---------------------------------------------------------------- the page


def shot(page: Page, name: str, first: str, last: str = "") -> None:
    """A part of the page, from the top of one element to the bottom of another."""
    page.settle()
    script = """(() => {
        const boxOf = (each) => document.querySelector(each).getBoundingClientRect();
        const boxes = [FIRST, LAST].map(boxOf);
        const top = boxes[0].top + scrollY - 14;
        return { x: 0, y: top, width: innerWidth, height: boxes[1].bottom + scrollY + 8 - top };
    })()"""
    clip = page.read(script.replace("FIRST", repr(first)).replace("LAST", repr(last or first)))
    told = page.call(
        "Page.captureScreenshot", captureBeyondViewport=True, clip={**clip, "scale": 1}
    )
    image = Image.open(io.BytesIO(base64.b64decode(told["data"]))).convert("RGB")
    image.quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(
        PICTURES / f"{name}.png", optimize=True
    )


def pages(report: Path, profile: Path) -> None:
    with browser(profile) as connection:
        page = Page(connection)
        for scheme, end in (("light", ""), ("dark", "-dark")):
            page.show(1180, 900, scheme)
            page.open(report)
            page.read("document.getElementById('lines').style.maxHeight = '15.5rem'")
            columns = ["lr", "width", "seed", "validation", "test", "valid/loss.last", "seconds"]
            page.read(f"change({{ cols: {columns}, panels: ['loss', 'accuracy'] }})")
            shot(page, f"report{end}", "header", "#panels")
        page.show(1180, 900, "light")
        page.read("change({ cols: [], group: ['lr'], panels: ['loss', 'accuracy'], x: 'epoch' })")
        shot(page, "groups", "#curves")
        page.read(
            "change({ group: [], draw: null, par: ['lr', 'width', 'valid/loss.last', 'test'] })"
        )
        shot(page, "parallel", "#parallel")


def main() -> None:
    torch.set_num_threads(1)
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for lr in (0.01, 0.1, 1.0):
            for width in (16, 128):
                for seed in (1, 2):
                    train(root / "runs/digits", {"lr": lr, "width": width, "seed": seed})
        os.chdir(root)
        pages(write_report("runs"), root / "profile")
        told = screen(typed(["-m", "batteries", "runs", "--filter", "lr>0.05"], root))
        terminal("runs", "batteries runs --filter 'lr>0.05'", told)
        (root / "train.py").write_text(TRAIN)
        text = typed(["train.py"], root)
        under_way = re.search(r"epoch 3: +[4-9]\d%[^\r]*", text)
        assert under_way, text
        terminal("progress", "python train.py", screen(text[: under_way.end()]))


if __name__ == "__main__":
    main()
