"""The page of `batteries report`: 1,000 runs of 1,000 points and 6 metrics, made and opened."""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from measure import print_table

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # browser

RUNS, POINTS = 1000, 1000
METRICS = ["train/loss", "train/accuracy", "valid/loss", "valid/accuracy", "valid/f1", "lr"]
TURNS = 7  # of opening and of drawing


def make_runs(root: Path, runs: int = RUNS, points: int = POINTS) -> None:
    """Runs of a sweep, as start_run and JsonLinesLogger write them."""
    for number in range(runs):
        rng = random.Random(number)
        arguments: dict[str, Any] = {
            "lr": round(10 ** rng.uniform(-4, -1), 6),
            "width": rng.choice([64, 128, 256, 512]),
            "dropout": rng.choice([0.0, 0.1, 0.2, 0.3]),
            "optimizer": rng.choice(["sgd", "adam", "adamw"]),
            "seed": number % 10,
        }
        session = {
            "state": "finished",
            "started": "2026-01-01T00:00:00+00:00",
            "stopped": "2026-01-01T01:00:00+00:00",
            "args": arguments,
            "git": {"commit": f"{number // 100:040x}"},
            "packages": {f"package-{each}": f"{each}.0.1" for each in range(50)},
        }
        run = root / f"{number:04d}"
        run.mkdir(parents=True)
        (run / "run.json").write_text(json.dumps({"id": f"{number:08x}", "sessions": [session]}))
        lines = []
        for step in range(1, points + 1):
            loss = math.exp(-step * arguments["lr"]) + rng.gauss(0, 0.02)
            values = [loss, 1 - loss / 2, loss + 0.1, 0.9 - loss / 2, 0.8 - loss / 2, 0.1 / step]
            metrics = dict(zip(METRICS, values, strict=True))
            lines.append({"step": step, "time": 1.7e9 + step * 0.5, "metrics": metrics})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run / "metrics.jsonl").write_text(text)
        (run / "log.txt").write_text(f"an epoch of run {number} has ended\n" * 200)
        scores = {"validation": 0.9 - rng.random() / 5, "metric": "f1", "minimization": False}
        (run / "scores.json").write_text(json.dumps(scores))


def opening(page: Path) -> None:
    """In Chromium: until all parts are drawn, and until the curves of five other runs are seen."""
    from browser import Page, browser  # of the tests

    frame = "new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"
    opened, drawn = list[float](), list[float]()
    with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as connection:
        for _ in range(TURNS):
            tab = Page(connection)
            tab.show(1280, 900, "light")
            tab.open(page)
            opened.append(tab.read("performance.now()"))
            tab.call("Page.close")
        tab = Page(connection)
        tab.show(1280, 900, "light")
        tab.open(page)
        for turn in range(TURNS):
            names = [f"{5 * turn + each:04d}" for each in range(5)]
            script = f"const begun = performance.now(); change({json.dumps({'draw': names})});"
            script += f"await {frame}; return performance.now() - begun;"
            drawn.append(tab.read(f"(async () => {{ {script} }})()"))
            tab.settle()
        version = tab.call("Browser.getVersion")["product"]
    print(f"\n{version}\n")
    print_table([
        ["", "median, ms", "min, ms"],
        ["the page is open, all parts drawn", f"{median(opened):.0f}", f"{min(opened):.0f}"],
        ["five other runs are drawn", f"{median(drawn):.0f}", f"{min(drawn):.0f}"],
    ])  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        make_runs(root / "runs")
        made, page = list[float](), root / "report.html"
        for _ in range(3):
            begun = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "batteries", "report", root / "runs", "-o", page],
                check=True, capture_output=True,
            )  # fmt: skip
            made.append(time.perf_counter() - begun)
        print(f"\n### page: {RUNS:,} runs of {POINTS:,} points and {len(METRICS)} metrics\n")
        print_table([
            ["", "median", "min"],
            ["the page is made, s", f"{median(made):.1f}", f"{min(made):.1f}"],
            ["its size, MB", f"{page.stat().st_size / 1e6:.2f}", ""],
        ])  # fmt: skip
        if shutil.which("chromium"):
            opening(page)
        else:
            print("\nchromium is not installed: opening and drawing are not measured")


if __name__ == "__main__":
    main()
