from __future__ import annotations

import html
import json
import math
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ranks import DEADLINE
from torch import nn

from batteries import CheckpointManager, JsonLinesLogger, get_logger, make_checkpoint, start_run
from batteries.report import write_report
from batteries.report.page import thinned
from batteries.scoreboard import record_scores

CHROMIUM = shutil.which("chromium")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


def make_run(logdir: str, epochs: int = 4, score: float = 0.9, **args: Any) -> Path:
    """A real run: record, checkpoints, lines, log, diff and scores."""
    with start_run(logdir, args, new=True) as run, JsonLinesLogger(run.path) as lines:
        manager = CheckpointManager(run.path / "checkpoints", "accuracy", False, save_n_best=2)
        for epoch in range(1, epochs + 1):
            accuracy = score - 0.5 / epoch
            losses = {"train": {"loss": 1 / epoch}, "valid": {"loss": 1.1 / epoch}}
            lines.log_metrics({**losses, "accuracy": accuracy, "lr": 0.1 / epoch}, epoch)
            manager.process(accuracy, epoch, make_checkpoint("train", epoch, nn.Linear(1, 1)))
    logger = get_logger(f"report {run.path}", run.path / "log.txt")
    for epoch in range(epochs):
        logger.info("epoch %d of %s </script><b>", epoch, run.path)
    record_scores(run.path, test=score - 0.01, leaderboard=score - 0.02)
    return run.path


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    assert found
    return dict(json.loads(found[1]))


def test_what_is_in_it() -> None:
    """The page has each run's row, curves, arguments, best checkpoints, and the end of its log."""
    path = make_run("runs", lr=0.1)
    data = data_of(write_report("runs"))
    [run] = data["runs"]
    assert run["row"]["validation"] == pytest.approx(0.775)
    assert run["args"] == {"lr": 0.1}
    assert run["curves"]["train/loss"] == [[1, 1.0], [2, 0.5], [3, 0.33333], [4, 0.25]]
    assert [each["epoch"] for each in run["checkpoints"]] == [4, 3]
    assert run["log"].count("epoch") == 4
    assert run["gaps"][0] == "test - validation is +0.1150"
    assert str(path / "checkpoints/exp_4.pth") == run["checkpoints"][0]["file"]


def test_size() -> None:
    """100 runs of 200 epochs, with long logs and diffs, stay under a megabyte."""
    first = make_run("runs", epochs=200, lr=0.1)
    (first / "log.txt").write_text("a line of the log\n" * 50_000)
    (first / "diff-1.patch").write_text("+ a line of the diff\n" * 50_000)
    record = json.loads((first / "run.json").read_text())
    record["sessions"][-1]["git"] = {"commit": "a" * 40, "dirty": True, "diff": "diff-1.patch"}
    (first / "run.json").write_text(json.dumps(record))
    for number in range(2, 101):
        shutil.copytree(first, f"runs/{number:03d}")
    page = write_report("runs")
    assert page.stat().st_size < 1e6
    run = data_of(page)["runs"][50]
    assert "characters are left out: runs/051/log.txt]" in run["log"]
    assert run["curves"]["lr"][0] == [1, 0.1]
    assert run["curves"]["lr"][-1] == [200, 0.0005]


def test_nothing_from_elsewhere() -> None:
    """The page names no address to load from, and forbids it."""
    make_run("runs")
    text = write_report("runs").read_text()
    assert "default-src 'none'" in text
    addresses = set(re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)""", text))
    assert addresses == {"data:,"}


def test_damaged_runs() -> None:
    """What cannot be read is told, and the rest is shown."""
    make_run("runs")
    for name in ("run.json", "metrics.jsonl", "scores.json", "checkpoints/metrics.json"):
        path = make_run("runs")
        (path / name).write_bytes(b'{"half": "writ')
    runs = data_of(write_report("runs"))["runs"]
    assert len(runs) == 5
    assert [bool(run["problems"]) for run in runs] == [False, True, False, True, True]
    Path("empty").mkdir()
    with pytest.raises(LookupError, match="there are no runs in empty"):
        write_report("empty")


def test_curves_keep_their_extremes() -> None:
    """A curve that is shortened keeps its ends, its minimum and its maximum, in their order."""
    generator = random.Random(0)
    for _ in range(200):
        length, points = generator.randrange(1, 3000), generator.randrange(4, 200)
        curve = [(step, generator.gauss(0, 1)) for step in range(length)]
        short = thinned(curve, points)
        assert len(short) <= max(points, 4)
        assert (short[0], short[-1]) == (curve[0], curve[-1])
        for extreme in (min, max):
            assert extreme(value for _, value in short) == extreme(value for _, value in curve)
        assert short == sorted(short)


# ---------------------------------------------------------------- in a browser

TOLD = """<script>
window.told = { errors: [] };
addEventListener("error", (event) => told.errors.push(String(event.message)));
addEventListener("securitypolicyviolation", (event) => told.errors.push(event.blockedURI));
console.error = console.warn = (...words) => told.errors.push(words.join(" "));
</script>"""
PROBE = """<script>
const $ = (id) => document.getElementById(id);
const texts = (where) => [...document.querySelectorAll(where)].map((found) => found.textContent);
const names = () => texts("#runs tbody td:nth-child(2)");
const headings = [...document.querySelectorAll("#runs th button")];
const heading = headings.find((button) => button.textContent === "validation");
const drawn = () => [...document.querySelectorAll("#curves path")].map((path) => path.dataset.run);
const shape = () => document.querySelector("#curves path").getAttribute("d");
const enter = (id, value, event) => { $(id).value = value; $(id).dispatchEvent(new Event(event)); };
try {
  told.names = names();
  heading.click();
  told.ascending = names();
  heading.click();
  told.descending = names();
  told.sorted = heading.parentElement.getAttribute("aria-sort");
  told.drawn = drawn();
  for (const box of document.querySelectorAll("#runs input:checked")) box.click();
  told.none = [drawn(), $("curves").textContent];
  document.querySelector("#runs tbody input").click();
  told.one = drawn();
  told.metrics = [...$("metric").options].map((option) => option.value);
  const before = shape();
  enter("metric", "train/loss", "change");
  told.changed = before !== shape();
  const key = new KeyboardEvent("keydown", { key: "Home" });
  document.querySelector("#curves svg").dispatchEvent(key);
  told.readout = $("readout").textContent;
  enter("filter", "0.9", "input");
  told.count = $("count").textContent;
  told.scatter = document.querySelectorAll("#scatter circle").length;
  told.details = $("details").textContent;
  told.scripts = document.scripts.length;
  told.wide = document.documentElement.scrollWidth > innerWidth;
} catch (error) { told.errors.push(String(error)); }
const output = document.createElement("output");
output.id = "told";
output.textContent = JSON.stringify(told);
document.body.append(output);
</script>"""


def browse(page: Path, *options: str) -> dict[str, Any]:
    """Open a page in a browser, do what a person would, and return what was seen."""
    text = page.read_text()
    page.write_text(text.replace("<head>", "<head>" + TOLD).replace("</body>", PROBE + "</body>"))
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", f"--user-data-dir={Path('profile').resolve()}"),
        *("--dump-dom", *options, page.resolve().as_uri()),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    found = re.search(r'<output id="told">(.*?)</output>', result.stdout, re.DOTALL)
    assert found, result.stderr
    return dict(json.loads(html.unescape(found[1])))


@in_a_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(width: int) -> None:
    """A click sorts, a choice changes the curve, keys read it, and nothing is an error."""
    for score in (0.95, 0.9, 0.99, 0.8):
        make_run("runs", score=score)
    told = browse(write_report("runs"), f"--window-size={width},900")
    assert told["errors"] == []
    assert told["names"] == ["001", "002", "003", "004"]
    assert told["ascending"] == ["004", "002", "001", "003"]
    assert told["descending"] == ["003", "001", "002", "004"]
    assert told["sorted"] == "descending"
    assert told["drawn"] == ["002", "003", "004"]
    assert told["none"][0] == []
    assert "choose runs in the table" in told["none"][1]
    assert told["one"] == ["003"]
    assert told["metrics"] == ["accuracy", "lr", "train/loss", "valid/loss"]
    assert told["changed"]
    assert told["readout"] == "step 1: 003: 1"
    assert told["count"].endswith(" of 4")
    assert told["scatter"] == 4
    assert "End of the log" in told["details"]
    assert not told["wide"]


@in_a_browser
def test_hostile_names() -> None:
    """A run named `<script>` is a run named `<script>`, wherever its texts are shown."""
    names = ["<script>told.errors.push(1)<", "<!--", "<img src=x onerror=told.errors.push(2)>"]
    for name in names:
        run = make_run(f"runs/{name}", note="</script><script>told.errors.push(3)</script>")
        record_scores(run, leaderboard=0.5, name="<b>bold")
    told = browse(write_report("runs", "<b>.html"))
    assert told["errors"] == []
    assert sorted(told["names"]) == sorted(f"{name}/001" for name in names)
    assert "</script><script>told.errors.push(3)</script>" in told["details"]
    assert told["scripts"] == 4  # the data, the page's own and the two of this test


@in_a_browser
def test_metrics_that_differ() -> None:
    """Runs without a score, with NaN, or with other metrics are shown beside the others."""
    make_run("runs")
    with start_run("runs", new=True) as run, JsonLinesLogger(run.path) as lines:
        lines.log_metrics({"other": math.nan, "loss": 1.0}, 1)
    told = browse(write_report("runs"))
    assert told["errors"] == []
    assert told["names"] == ["001", "002"]
    assert told["descending"] == ["001", "002"]  # without a score it stays behind
