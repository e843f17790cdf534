"""The example of images: killed and started again, and what it exports."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from PIL import Image
from ranks import run_ranks
from test_examples_lm import EXAMPLES, digest, disturbed, train

from batteries import load_checkpoint
from batteries.checkpoint import read_checkpoint

PROGRAMS = EXAMPLES / "images"
SMALL = ["--num-epochs=2", "--batch-size=8", "--width=8"]


@pytest.fixture(autouse=True)
def _images() -> None:
    sizes = ["--train=8", "--valid=2", "--test=2"]
    warm.run([sys.executable, str(PROGRAMS / "prepare.py"), *sizes], check=True)


def test_what_is_exported() -> None:
    """Two ranks export the best average, and their scores are those of one process by hand."""
    run_ranks(train, "images", Path.cwd(), SMALL, group=False)
    run = Path("runs/images/001")
    best = read_checkpoint(run / "checkpoints/best.pth")["ema_state_dict"]["module"]
    exported = load_checkpoint(run / "model.safetensors")["model_state_dict"]
    assert digest(exported) == digest(best)
    told = re.search(r"test top-1 (\S+), top-5 (\S+); with flips", (run / "log.txt").read_text())
    assert told
    assert [float(score) for score in told.groups()] == by_hand(exported)


def test_transforms_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchvision, the option for its transforms names its install command."""
    monkeypatch.setitem(sys.modules, "torchvision", None)
    make = runpy.run_path(str(PROGRAMS / "datasets.py"))["torchvision_transforms"]
    with pytest.raises(SystemExit, match="pip install torchvision, or leave out the option"):
        make()


@pytest.mark.sweep
def test_killed_and_undisturbed() -> None:
    """A run killed in an epoch ends with the weights and EMA of an undisturbed one."""
    runs = disturbed("images", 2, SMALL, killed_at=7, more=("--num-workers=0",))
    whole, broken = (read_checkpoint(run / "checkpoints/last.pth") for run in runs)
    assert digest(whole["model_state_dict"]) == digest(broken["model_state_dict"])
    averages = [each["ema_state_dict"]["module"] for each in (whole, broken)]
    assert digest(averages[0]) == digest(averages[1])


def by_hand(weights: dict[str, torch.Tensor]) -> list[float]:
    """Top-1 and top-5 of the test images in one process, without any of ours."""
    model = runpy.run_path(str(PROGRAMS / "models.py"))["ResNet"](classes=10, width=8).eval()
    model.load_state_dict(weights)
    hits = []
    for label, folder in enumerate(sorted(Path("runs/shapes/test").iterdir())):
        for path in folder.iterdir():
            pixels = torch.tensor(np.asarray(Image.open(path)), dtype=torch.float32)
            scores = model(((pixels - 128) / 64).permute(2, 0, 1)[None])[0]
            better = int((scores > scores[label]).sum())
            hits.append((better < 1, better < 5))
    return [round(float(score), 4) for score in np.mean(hits, axis=0)]
