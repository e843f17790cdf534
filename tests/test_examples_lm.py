"""The example of a language model: killed and started again, on ranks, with FSDP2."""

from __future__ import annotations

import hashlib
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import warm
from ranks import run_ranks

from batteries import Window
from batteries.checkpoint import read_checkpoint

FOLDER = Path(__file__).parents[1] / "examples/lm"
SMALL = [
    *("--width=16", "--depth=1", "--heads=2", "--length=16", "--batch-size=2", "--eval-crops=8"),
    *("--tokens-per-step=128", "--steps=8", "--warmup-steps=2", "--eval-every=4"),
]


def train(there: Path, words: list[str], killed_at: int = 0) -> None:
    """Run the example as its users do; the last rank is killed in a micro-batch."""
    os.chdir(there)
    sys.path.insert(0, str(FOLDER))
    sys.argv = ["experiment.py", *SMALL, *words]
    if killed_at and os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
        backward, count = Window.backward, iter(range(1, 1000))

        def killed(window: Window, loss: Any) -> None:
            backward(window, loss)
            if next(count) == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)

        Window.backward = killed  # type: ignore[method-assign, assignment]
    runpy.run_path(str(FOLDER / "experiment.py"), run_name="__main__")


def digest(path: Path) -> str:
    """Of the names and the bits of all weights."""
    weights = read_checkpoint(path)["model_state_dict"]
    bits = {name: weight.numpy().tobytes() for name, weight in weights.items()}
    return hashlib.sha256(repr(sorted(bits.items())).encode()).hexdigest()


@pytest.fixture(autouse=True)
def _tokens() -> None:
    warm.run([sys.executable, str(FOLDER / "prepare.py"), __file__], check=True)


@pytest.mark.parametrize(
    ("ranks", "words"), [(1, []), (2, []), (2, ["--fsdp"])], ids=["alone", "ddp", "fsdp"]
)
def test_killed_and_undisturbed(ranks: int, words: list[str]) -> None:
    """A run killed in the middle of a window ends with the weights of an undisturbed one."""
    here = Path.cwd()
    options: dict[str, Any] = {"world_size": ranks, "group": False}
    assert run_ranks(train, here, [*words, "--exp-name=whole"], **options) == [None] * ranks
    broken = [*words, "--exp-name=broken", "--continue"]
    with pytest.raises(EOFError):
        run_ranks(train, here, broken, 22 // ranks, **options)
    run_ranks(train, here, broken, **options)
    first, second = (here / f"runs/{name}/001/checkpoints" for name in ("whole", "broken"))
    suffix = "dcp" if words else "pth"
    assert digest(first / f"last.{suffix}") == digest(second / f"last.{suffix}")
    assert (first / "metrics.json").read_text() == (second / "metrics.json").read_text()
    command = [sys.executable, str(FOLDER / "sample.py"), str(second / f"best.{suffix}")]
    written = warm.run([*command, "--tokens=5"], capture_output=True, check=True)
    assert written.stdout.startswith(b"def ")
