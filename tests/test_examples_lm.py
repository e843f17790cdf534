"""The example of a language model: killed and started again, on ranks, with FSDP2."""

from __future__ import annotations

import hashlib
import os
import runpy
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import warm
from ranks import run_ranks
from torch import Tensor

from batteries import Window
from batteries.checkpoint import read_checkpoint

EXAMPLES = Path(__file__).parents[1] / "examples"
PROGRAMS = EXAMPLES / "lm"
SMALL = [
    *("--width=16", "--depth=1", "--heads=2", "--length=16", "--batch-size=2", "--eval-crops=8"),
    *("--tokens-per-step=128", "--steps=8", "--warmup-steps=2", "--eval-every=4"),
]


def train(example: str, there: Path, words: list[str], killed_at: int = 0) -> None:
    """Run an example as its users do, without warnings; the last rank is killed in a backward."""
    os.chdir(there)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "This process")  # has threads, and forks workers
    sys.path.insert(0, str(EXAMPLES / example))
    sys.argv = ["experiment.py", *words]
    if killed_at and os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
        backward, count = Window.backward, iter(range(1, 1000))

        def killed(window: Window, loss: Any) -> None:
            backward(window, loss)
            if next(count) == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)

        Window.backward = killed  # type: ignore[method-assign, assignment]
    runpy.run_path(str(EXAMPLES / example / "experiment.py"), run_name="__main__")


def disturbed(
    example: str, ranks: int, words: list[str], killed_at: int, more: tuple[str, ...] = ()
) -> list[Path]:
    """The runs of two programs, one of which was killed and started again, with more words."""
    here = Path.cwd()
    options: dict[str, Any] = {"world_size": ranks, "group": False}
    whole, broken = ([*words, f"--exp-name={name}"] for name in ("whole", "broken"))
    assert run_ranks(train, example, here, whole, **options) == [None] * ranks
    broken.append("--continue")
    with pytest.raises(EOFError):
        run_ranks(train, example, here, broken, killed_at, **options)
    assert run_ranks(train, example, here, [*broken, *more], **options) == [None] * ranks
    return [here / f"runs/{name}/001" for name in ("whole", "broken")]


def digest(weights: dict[str, Tensor]) -> str:
    bits = {name: weight.numpy().tobytes() for name, weight in weights.items()}
    return hashlib.sha256(repr(sorted(bits.items())).encode()).hexdigest()


@pytest.mark.parametrize(
    ("ranks", "words"), [(1, []), (2, []), (2, ["--fsdp"])], ids=["alone", "ddp", "fsdp"]
)
def test_killed_and_undisturbed(ranks: int, words: list[str]) -> None:
    """A run killed in the middle of a window ends with the weights of an undisturbed one."""
    warm.run([sys.executable, str(PROGRAMS / "prepare.py"), __file__], check=True)
    runs = disturbed("lm", ranks, [*SMALL, *words], killed_at=22 // ranks)
    suffix = "dcp" if words else "pth"
    whole, broken = (
        digest(read_checkpoint(run / f"checkpoints/last.{suffix}")["model_state_dict"])
        for run in runs
    )
    assert whole == broken
    scores, others = ((run / "checkpoints/metrics.json").read_text() for run in runs)
    assert scores == others
    best = str(runs[1] / f"checkpoints/best.{suffix}")
    command = [sys.executable, str(PROGRAMS / "sample.py"), best, "--tokens=5"]
    assert warm.run(command, capture_output=True, check=True).stdout.startswith(b"def ")
