"""Runs the examples, and draws a picture of each run: `python docs/_examples.py lm images`.

`make pictures` does this for all examples. With `--runs DIRECTORY`, the runs are kept there. A
second start with the same directory draws them again without training.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from PIL import Image

from batteries.loggers import read_lines

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs/pictures"
COLOURS = 256  # of a PNG file
BLUE, ORANGE, GREEN, GREY = "#2563eb", "#ea580c", "#059669", "#6b7280"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
    "svg.hashsalt": "batteries",  # the same file for the same numbers
}


def logged(run: Path, name: str) -> tuple[list[float], list[float]]:
    """The steps and the values of a metric."""
    lines = [line for line in read_lines(run) if name in line.get("metrics", {})]
    return [line["step"] for line in lines], [line["metrics"][name] for line in lines]


def curve(axis: Any, run: Path, name: str, start: int = 0, **how: Any) -> int:
    """Draw a metric from the step `start` on, and return its last step."""
    steps, values = logged(run, name)
    axis.plot([start + step for step in steps], values, **how)
    return start + int(steps[-1])


def digits(axes: Any, run: Path, stages: tuple[str, ...] = ("",)) -> None:
    loss, accuracy = axes
    start = 0
    for number, stage in enumerate(stages):
        where = run / "metrics" / stage if stage else run
        told = (lambda text: text) if number == 0 else (lambda _: None)
        curve(loss, where, "train/loss", start, color=GREY, label=told("training"))
        curve(loss, where, "valid/loss", start, color=BLUE, label=told("validation"))
        end = curve(accuracy, where, "valid/accuracy", start, color=BLUE, label=told("validation"))
        for axis in axes if start else ():
            axis.axvline(start + 0.5, color=GREY, linewidth=0.8, linestyle="--")
            axis.annotate(
                stage, (start + 0.7, 0.55), xycoords=("data", "axes fraction"), color=GREY
            )
        start = end
    scores = json.loads((run / "scores.json").read_text())
    accuracy.axhline(scores["test"], color=ORANGE, linestyle=":", label="test, best epoch")
    loss.set(title="Loss", xlabel="epoch", yscale="log")
    loss.yaxis.set_major_formatter("{x:g}")
    accuracy.set(title="Accuracy", xlabel="epoch", ylim=(0.88, 1.002))
    loss.legend()
    accuracy.legend(loc="lower right")


def two_stages(axes: Any, run: Path) -> None:
    digits(axes, run, ("train", "finetune"))


def kfold(axes: Any, run: Path) -> None:
    epochs, folds = axes
    for fold in range(5):
        text = (run / f"fold_{fold}/checkpoints/metrics.json").read_text()
        rows = json.loads(text)["values"]
        values = [row["accuracy"] for row in rows]
        epochs.plot([row["epoch"] for row in rows], values, label=f"fold {fold}", linewidth=1.2)
    epochs.set(title="Validation accuracy of each fold", xlabel="epoch", ylim=(0.9, 1.002))
    epochs.legend(loc="lower right")
    scores = json.loads((run / "scores.json").read_text())
    for fold, score in enumerate(scores["folds"]):
        folds.scatter(fold, score, s=45)
    folds.axhline(scores["validation"], color=BLUE, label="out of fold, all rows")
    folds.axhline(scores["test"], color=ORANGE, linestyle=":", label="test, mean of the folds")
    folds.set(title="Accuracy at the best epoch", xlabel="fold", ylim=(0.97, 1.0), xticks=range(5))
    folds.legend(loc="lower right")


def submission(axes: Any, run: Path) -> None:
    table = json.loads((run / "table.json").read_text())
    names = [*table][::-1]
    for axis, out_of_fold, test, title in (
        (axes[0], "OOF", "test", "Log loss (lower is better)"),
        (axes[1], "OOF accuracy", "test accuracy", "Accuracy"),
    ):
        for column, colour, label in ((out_of_fold, BLUE, "out of fold"), (test, ORANGE, "test")):
            axis.scatter([table[n][column] for n in names], names, color=colour, label=label, s=28)
        axis.set_title(title)
    best = min(names, key=lambda name: table[name]["OOF"])
    axes[0].axhspan(names.index(best) - 0.4, names.index(best) + 0.4, color=BLUE, alpha=0.12)
    axes[0].annotate("chosen", (0.07, names.index(best)), va="center", color=BLUE)
    axes[0].set_xlim(0.04, 0.1)
    for place, name in enumerate(names):
        if table[name]["OOF"] > 0.1:
            axes[0].annotate(f"{table[name]['OOF']:.1f} →", (0.099, place), ha="right", va="center")
    axes[1].set_yticklabels([])
    axes[0].legend(loc="upper right")


def lm(axes: Any, run: Path) -> None:
    bits, rate = axes
    steps, values = logged(run, "train/loss")
    bits.plot(steps, [value / math.log(2) for value in values], color=GREY, label="training")
    curve(bits, run, "valid/bits_per_byte", color=BLUE, marker="o", ms=4, label="validation")
    scores = json.loads((run / "scores.json").read_text())
    bits.axhline(scores["test"], color=ORANGE, linestyle=":", label="test, best checkpoint")
    bits.set(title="Bits per byte", xlabel="step")
    bits.legend()
    curve(rate, run, "train/lr", color=GREEN)
    rate.set(title="Learning rate", xlabel="step")


def images(axes: Any, run: Path) -> None:
    samples, top1 = axes
    folders = sorted((run.parents[1] / "shapes/train").iterdir())
    sheet = Image.new("RGB", (5 * 36 + 4, 2 * 36 + 4), "white")
    for number, folder in enumerate(folders):
        with Image.open(folder / "0000.png") as image:
            sheet.paste(image, (4 + 36 * (number % 5), 4 + 36 * (number // 5)))
    samples.imshow(sheet, interpolation="nearest")
    samples.set_axis_off()
    samples.set_title("One image of each class")
    curve(top1, run, "valid/top1", color=GREY, label="model")
    curve(top1, run, "ema/top1", color=BLUE, label="EMA")
    scores = json.loads((run / "scores.json").read_text())
    top1.axhline(scores["test"], color=ORANGE, linestyle=":", label="test, EMA with flips")
    top1.set(title="Validation top-1", xlabel="epoch")
    top1.legend(loc="lower right")


def tabular(axes: Any, run: Path) -> None:
    [axis] = axes
    table = json.loads((run / "table.json").read_text())
    names = [*table][::-1]
    values = {column: [table[name][column] for name in names] for column in table["net"]}
    # The spread is that of folds of 720 rows; the private score has 1,260 rows.
    chance = [2 * spread * (720 / 1260) ** 0.5 for spread in values["spread"]]
    how: dict[str, Any] = {"color": BLUE, "elinewidth": 6, "alpha": 0.25, "fmt": "none"}
    axis.errorbar(values["validation"], names, xerr=chance, label="chance (private rows)", **how)
    for column, colour, marker in (
        ("validation", BLUE, "o"),
        ("public", GREEN, "^"),
        ("private", ORANGE, "s"),
    ):
        axis.scatter(
            values[column], names, color=colour, marker=marker, label=column, s=36, zorder=3
        )
    axis.set_title("F1 of each candidate")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


DRAW: dict[str, Callable[[Any, Path], None]] = {
    "device": two_stages,
    "dp": two_stages,
    "ddp": digits,
    "kfold": kfold,
    "submission": submission,
    "lm": lm,
    "images": images,
    "tabular": tabular,
}


def trained(name: str, here: Path) -> Path:
    """Run the command of an example's README, unless it has run here. Return the run."""
    run = here / "runs" / name / "001"
    if not (run / "scores.json").exists():
        text = (ROOT / "examples" / name / "README.md").read_text()
        [command] = re.findall(r"```bash\n(.*?)\n```", text)
        program, *words = shlex.split(command.replace("examples/", f"{ROOT}/examples/"))
        modules = {"torchrun": ["-m", "torch.distributed.run"], "python": []}
        subprocess.run([sys.executable, *modules[program], *words], cwd=here, check=True)
    return run


def save(figure: Any, name: str) -> None:
    """Write a small file: SVG, or PNG if the picture contains images."""
    if name == "images":
        data = io.BytesIO()
        figure.savefig(data, dpi=140)
        with Image.open(data) as image:
            small = image.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE)
        small.save(PICTURES / f"example-{name}.png", optimize=True)
        return
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    short = re.sub(r"\s+", " ", text.getvalue())
    (PICTURES / f"example-{name}.svg").write_text(f"{short}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=[*DRAW], help=f"of {', '.join(DRAW)}")
    parser.add_argument("--runs", type=Path, help="keep the runs in this directory")
    args = parser.parse_args()
    mpl.use("Agg")
    mpl.rcParams.update(STYLE)
    with tempfile.TemporaryDirectory() as temporary:
        here = args.runs or Path(temporary)
        for name in args.names:
            panels = 1 if name == "tabular" else 2
            figure, axes = plt.subplots(
                1, panels, figsize=(8, 2.9), layout="constrained", squeeze=False
            )
            DRAW[name](axes[0], trained(name, here.resolve()))
            save(figure, name)
            plt.close(figure)


if __name__ == "__main__":
    main()
