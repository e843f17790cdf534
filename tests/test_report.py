from __future__ import annotations

import errno
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Page, browser
from mounts import tmpfs
from sweeps import sweep
from websockets.sync.connection import Connection

from batteries import CheckpointManager, JsonLinesLogger, get_logger, start_run
from batteries.report import write_report
from batteries.report._contents import Text
from batteries.report._curves import Curve
from batteries.scoreboard import record_scores

EVIL = "<script>alert(1)</script><!--"


def train(logdir: str, epochs: int, lr: float, **args: Any) -> Path:
    """A run with all files that there are, whose curves depend on the learning rate."""
    with start_run(logdir, {"lr": lr, **args}, new=True) as run:
        manager = CheckpointManager(
            run.path / "checkpoints", metric="accuracy", metric_minimization=False, save_n_best=2
        )
        logger = get_logger(str(run.path), log_file=run.path / "log.txt")
        with JsonLinesLogger(run.path) as lines:
            for epoch in range(1, epochs + 1):
                train_loss = math.exp(-epoch * lr)
                loss, accuracy = train_loss + 0.01 * epoch * lr, 0.9 - 0.4 * train_loss
                metrics = {"train": {"loss": train_loss}, "valid": {"loss": loss}}
                metrics["valid"]["accuracy"] = accuracy
                lines.log_metrics({**metrics, "lr": lr * 0.9**epoch}, epoch)
                logger.info("epoch %d: accuracy %.4f", epoch, accuracy)
                manager.process(accuracy, epoch, {"epoch": epoch})
    return run.path


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine runs, of which some have leaderboard scores; one has a hostile name, one is broken."""
    root = tmp_path_factory.mktemp("logdir")
    for number in range(1, 8):
        path = train(str(root), 8, 0.1 * number, model={"layers": [64, number]}, note=EVIL)
        record_scores(path, leaderboard=0.8 + number / 100, test=0.8 + number / 200)
    with start_run(root / EVIL.replace("/", "|"), {EVIL: EVIL}) as run:
        (run.path / "log.txt").write_text(f"{EVIL}\n")
        (run.path / "diff-1.patch").write_text(f"--- a\n+++ b\n@@ -1 +1 @@\n-{EVIL}\n+b\n")
        record = json.loads((run.path / "run.json").read_text())
        record["sessions"][-1]["git"] = {"commit": "0" * 40, "diff": "diff-1.patch"}
        (run.path / "run.json").write_text(json.dumps(record))
        with JsonLinesLogger(run.path) as lines:
            lines.log_metrics({EVIL: 1.0, "loss": float("nan")}, 1)
    broken = root / "broken"
    broken.mkdir()
    (broken / "run.json").write_text('{"sessions": [')
    return root


def data_of(page: Path) -> Any:
    [text] = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text()
    )
    return json.loads(text)


def runs_of(logdir: str) -> list[Any]:
    return list(data_of(write_report(logdir))["runs"])


# ---------------------------------------------------------------- what is written


def test_one_file_that_loads_nothing(logdir: Path) -> None:
    """The page has three scripts and styles of its own, no address, and no markup from a run."""
    text = write_report(logdir).read_text()
    assert len(re.findall(r"<script|<style", text)) == 3
    own = re.sub(r'id="data">.*?</script>', "", text)
    assert re.findall(r"https?://(?!www.w3.org/2000/svg)", own) == []
    assert EVIL not in text
    assert "default-src 'none'" in text


def test_what_a_page_holds(logdir: Path) -> None:
    """Each run has its row, curves, checkpoints, arguments and log on the page."""
    data = data_of(write_report(logdir))
    assert [run["name"] for run in data["runs"][:7]] == [f"00{number}" for number in range(1, 8)]
    first = data["runs"][0]
    assert [curve[:3] for curve in first["curves"]] == [
        ["loss", "train", "step"],
        ["loss", "valid", "step"],
        ["accuracy", "valid", "step"],
        ["lr", "", "step"],
        ["accuracy by epoch", "", "epoch"],
    ]
    assert [each["epoch"] for each in first["checkpoints"]] == [7, 8]
    assert [data["shared"][place] for place in first["facts"]["arguments"]] == [
        ["lr", "0.1"], ["model", '{"layers": [64, 1]}'], ["note", EVIL]
    ]  # fmt: skip
    assert "epoch 8: accuracy" in first["log"]
    assert (first["row"]["test"], first["row"]["leaderboard.public"]) == (0.805, 0.81)


def test_stages_and_gaps(logdir: Path) -> None:
    """Each stage has the curves of its own file; the page says whether the scores move together."""
    with start_run("runs") as run:
        for stage in ("head", "full"):
            with JsonLinesLogger(run.path / "metrics" / stage) as lines:
                lines.log_metrics({"train": {"loss": 0.5}, "lr": 0.1}, 1)
    [found] = runs_of("runs")
    assert [curve[:2] for curve in found["curves"]] == [
        ["loss", "full/train"], ["lr", "full"], ["loss", "head/train"], ["lr", "head"]
    ]  # fmt: skip
    gaps = data_of(write_report(logdir))["gaps"]
    assert gaps == [
        f"7 runs by accuracy: {name} moves with validation"
        for name in ("test", "leaderboard.public")
    ]


def test_no_torch(logdir: Path) -> None:
    """A report is written without torch, and where there is no terminal without a word."""
    script = (
        "import sys; from batteries.report import write_report\n"
        "write_report(sys.argv[1]); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(logdir)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("False\n", "")


def test_size_of_a_hundred_runs() -> None:
    """100 runs of 200 epochs, each with its own log and diff, are under 1 MB."""
    packages = {f"package-{number}": f"{number}.0.1" for number in range(200)}
    for number in range(100):
        run = Path(f"runs/{number:03d}")
        run.mkdir(parents=True)
        session = {
            "state": "finished",
            "started": "2026-01-01T00:00:00+00:00",
            "packages": packages,
        }
        session |= {"args": {f"argument_{name}": name * number for name in range(40)}}
        session |= {"git": {"commit": f"{number:040x}", "diff": "diff-1.patch"}}
        (run / "run.json").write_text(json.dumps({"id": "a", "sessions": [session]}))
        names = ["train/loss", "train/accuracy", "valid/loss", "valid/accuracy", "valid/f1", "lr"]
        lines = [
            {
                "step": epoch,
                "time": 1.7e9 + epoch,
                "metrics": {name: math.sin(epoch * len(name) + number) for name in names},
            }
            for epoch in range(1, 201)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        rows = [{"epoch": line["step"], "f1": line["metrics"]["valid/f1"]} for line in lines]  # type: ignore[index]
        memory = {"metric_name": "f1", "metric_minimization": False, "values": rows}
        (run / "metrics.json").write_text(json.dumps(memory))
        (run / "log.txt").write_text(f"an epoch of run {number} has ended\n" * 1000)
        (run / "diff-1.patch").write_text(f"+ a line of run {number}\n" * 1000)
    page = write_report("runs")
    assert 500_000 < page.stat().st_size < 1_000_000
    last = data_of(page)["runs"][-1]
    assert re.match(r"\[[\d,]+ bytes before this\]\nan epoch", last["log"])
    assert all(len(curve[3]) >= 40 for curve in last["curves"])


def test_few_runs_lose_nothing(logdir: Path) -> None:
    """Where there is room, every point and every line is on the page."""
    run = data_of(write_report(logdir))["runs"][0]
    assert run["log"] == (logdir / "001/log.txt").read_text()
    assert [curve[3] for curve in run["curves"]] == [[1] * 8] * 5


# ---------------------------------------------------------------- points and lines


@pytest.mark.parametrize("most", [4, 10, 101])
def test_thinned_curves(most: int) -> None:
    """Of many points the first, the last, the highest and the lowest remain."""
    curve = Curve("loss", "")
    values = [math.sin(step / 7) + step / 1000 for step in range(1000)]
    values[500], values[700] = 99.0, -99.0
    for step, value in enumerate(values):
        curve.add(step, value)
    distances, kept = curve.points(most)
    steps = [sum(distances[: index + 1]) for index in range(len(distances))]
    assert len(steps) <= most
    expected = [float(f"{values[step]:.5g}") for step in (0, 500, 700, 999)]
    assert [dict(zip(steps, kept, strict=True))[step] for step in (0, 500, 700, 999)] == expected


def test_steps_that_come_again() -> None:
    """A step that was logged again has its last value, wherever its line is."""
    curve = Curve("loss", "")
    for step, value in [(1, 0.5), (2, 0.4), (1, 0.3), (3, math.nan)]:
        curve.add(step, value)
    assert curve.points(10) == ([1, 1, 1], [0.3, 0.4, None])
    assert curve.lost() == 1


def test_cut_texts() -> None:
    """A text is cut at a line, at its beginning or its end, and says by how much."""
    text = "one\ntwo\nthree\n"
    assert Text(text).cut(100) == text
    assert Text(text).cut(9) == "one\ntwo\n[6 bytes after this]\n"
    assert Text(text, 10, tail=True).cut(9) == "[18 bytes before this]\nthree\n"


# ---------------------------------------------------------------- bad input


def test_no_runs() -> None:
    """A directory without runs is an error that says what a run is."""
    Path("runs/notes").mkdir(parents=True)
    with pytest.raises(LookupError, match="no runs in runs: a run is a directory with a run"):
        write_report("runs")
    with pytest.raises(NotADirectoryError, match="there is no directory nowhere"):
        write_report("nowhere")
    assert not Path("report.html").exists()


FOREIGN = [
    None,
    5,
    "text",
    [],
    [5],
    {},
    {"sessions": [5, {}]},
    {"sessions": [{"git": "x", "args": 3}]},
]


@pytest.mark.parametrize("value", FOREIGN, ids=json.dumps)
@pytest.mark.parametrize("name", ["run.json", "scores.json", "metrics.json", "metrics.jsonl"])
def test_foreign_files(name: str, value: Any) -> None:
    """Whatever JSON a file holds, the run and the other runs are shown."""
    for run in ("a", "b"):
        path = Path("runs", run)
        path.mkdir(parents=True)
        (path / "run.json").write_text('{"sessions": [{"state": "finished"}]}')
    Path("runs/a", name).write_text(json.dumps(value) + "\n")
    assert [run["name"] for run in data_of(write_report("runs"))["runs"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("run.json", '{"sessions": [', "run.json is not the record of a run"),
        ("scores.json", '{"test": ', "scores.json has no scores: Expecting"),
        (
            "scores.json",
            '{"validation": 0.5, "test": "x"}',
            "test is 'x'; expected a finite number",
        ),
        (
            "metrics.json",
            '{"metric_name": "loss", "values": 5}',
            "is not a CheckpointManager's: values is 5; expected list",
        ),
        ("metrics.jsonl", '5\n{"step": 1, "metrics": {"loss": 1}}\n', "1 lines are not a JSON"),
        ("metrics.jsonl", '{"step": 1, "metrics": {"loss": 1}}\n{"st', "last line is half written"),
    ],
)
def test_problems_are_told(name: str, text: str, problem: str) -> None:
    """A torn or foreign file is named on the page, with what is wrong."""
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/run.json").write_text('{"sessions": [{"state": "finished"}]}')
    Path("runs/a", name).write_text(text)
    [run] = data_of(write_report("runs"))["runs"]
    [told] = run["problems"]
    assert problem in told
    assert len(run["curves"]) == (name == "metrics.jsonl")


def test_numbers_that_json_has_not() -> None:
    """NaN, infinities and numbers beyond floats in any file leave the page's JSON strict."""
    Path("runs/a").mkdir(parents=True)
    text = (
        '{"sessions": [{"args": {"a": NaN, "b": Infinity}, "error": "\\udc80", "started": 1e999}]}'
    )
    Path("runs/a/run.json").write_text(text)
    huge = "1" + "0" * 400
    Path("runs/a/metrics.jsonl").write_text(
        f'{{"step": 1, "metrics": {{"a": NaN, "b": {huge}, "c": {{}}, "d": true}}}}\n'
    )
    [run] = data_of(write_report("runs"))["runs"]
    assert [(curve[0], curve[4]) for curve in run["curves"]] == [("a", [None]), ("d", [1])]


def test_a_record_asks_for_no_other_file() -> None:
    """The diff of a run is a diff in its directory, whatever its record says."""
    Path("secret").write_text("secret")
    Path("runs/a").mkdir(parents=True)
    session = {"git": {"commit": "0", "diff": "../../secret"}}
    Path("runs/a/run.json").write_text(json.dumps({"sessions": [session]}))
    data = data_of(write_report("runs"))
    assert data["shared"][data["runs"][0]["diff"]] == ""


def test_full_disk(logdir: Path, tmp_path: Path) -> None:
    """On a full disk the page that was there stays, and the error names it and the room."""
    with tmpfs(tmp_path / "small", size=16384) as disk:
        (disk / "report.html").write_text("old")
        with pytest.raises(OSError, match=r"report.html takes about [\d,]+ bytes") as told:
            write_report(logdir, disk / "report.html")
        assert told.value.errno == errno.ENOSPC
        assert [path.read_text() for path in disk.iterdir()] == ["old"]


def test_metrics_that_only_some_runs_have() -> None:
    """Runs need not have the same metrics: each has its own, and those of each of its stages."""
    for name in ("loss", "perplexity"):
        with start_run("runs", new=True) as run, JsonLinesLogger(run.path) as lines:
            lines.log_metrics({name: 0.5}, 1)
    for stage in ("head", "full"):
        manager = CheckpointManager(run.path / stage, metric="loss", metric_minimization=True)
        manager.process(0.5, 1, {})
    first, second = (set(map(tuple, (c[:3] for c in run["curves"]))) for run in runs_of("runs"))
    assert first == {("loss", "", "step")}
    scores = {("loss by epoch", stage, "epoch") for stage in ("head", "full")}
    assert second == {("perplexity", "", "step"), *scores}


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    with browser(tmp_path_factory.mktemp("profile")) as connection:
        yield connection


@pytest.fixture
def page(logdir: Path, chromium: Connection) -> Iterator[Page]:
    found = Page(chromium)
    found.show(1280, 900, "light")
    found.open(write_report(logdir))
    yield found
    assert found.complaints() == []


NAMES = "[...document.querySelectorAll('#table tbody th')].map((cell) => cell.textContent)"
SORTED = "[...document.querySelectorAll('#table thead th[aria-sort]')].map((cell) => cell.ariaSort)"
LINES = "[...document.querySelectorAll('.panel')][0].querySelectorAll('path.curve').length"


def column(page: Page, name: str) -> int:
    """Which column of the table has this name, counted from one."""
    heads = "[...document.querySelectorAll('#table thead th')].map((cell) => cell.textContent)"
    return int(page.read(heads).index(name)) + 1


def test_a_click_sorts(page: Page) -> None:
    """A click on a heading sorts by it, a second one backwards; what has no value stays behind."""
    head = f"#table thead th:nth-child({column(page, 'validation')})"
    page.click(f"{head} button")
    forwards = page.read(NAMES)
    assert forwards[:7] == [f"00{number}" for number in range(1, 8)]
    page.click(f"{head} button")
    assert page.read(NAMES)[:7] == forwards[:7][::-1]
    assert page.read(NAMES)[7:] == forwards[7:]
    assert page.read(f"document.querySelector('{head}').ariaSort") == "descending"
    assert sorted(set(page.read(SORTED))) == ["descending", "none"]


def test_a_choice_changes_the_curves(page: Page) -> None:
    """A tick in the table draws a run's curves, and takes them away."""
    tick = "#table input[aria-label='draw 001']"
    before = page.read(LINES)
    page.click(tick)
    assert page.read(LINES) == before + 2  # of training and of validation
    assert page.read("document.querySelector('.panel [data-run=\"001\"] path').getAttribute('d')")
    page.click(tick)
    assert page.read(LINES) == before
    page.click("#none")
    assert page.read(LINES) == 0


def test_by_keyboard(page: Page) -> None:
    """Headings, ticks and curves are reached and used with keys alone."""
    page.read("document.querySelector('#table thead button').focus()")
    page.press("Enter")
    assert page.read("document.querySelector('#table thead th').ariaSort") == "ascending"
    tick = "document.querySelector('#table input[aria-label=\"draw 001\"]')"
    page.read(f"{tick}.focus()")
    page.press("Space")
    assert page.read(f"{tick}.checked")
    page.read("document.querySelector('.panel .plot').focus()")
    page.press("Home")
    told = "document.querySelector('.panel .plot').getAttribute('aria-valuetext')"
    assert page.read(told).startswith("step 1: ")
    page.press("ArrowRight")
    assert page.read(told).startswith("step 2: ")
    assert "001 valid" in page.read("document.querySelector('.panel .readout').textContent")


def test_filter(page: Page) -> None:
    """The filter keeps the runs with all its words."""
    script = """(() => {
        const field = document.getElementById("filter");
        field.value = "FINISHED accuracy";
        field.dispatchEvent(new Event("input"));
    })()"""
    page.read(script)
    assert len(page.read(NAMES)) == 7
    assert page.read("document.getElementById('count').textContent") == "7 of 9 runs"


def test_markup_stays_text(page: Page) -> None:
    """A run named `<script>` is a run named `<script>`, in its name, arguments, log and diff."""
    name = EVIL.replace("/", "|")
    [found] = [each for each in page.read(NAMES) if each.startswith("<")]
    assert found.startswith(name)
    page.read(f"show({page.read('runs.length')} - 2)")
    assert page.read("document.querySelectorAll('script').length") == 2
    shown = page.read("document.getElementById('detail').textContent")
    assert shown.count(EVIL) >= 4
    assert "broken: " in page.read("document.getElementById('problems').textContent")


def test_one_run(page: Page) -> None:
    """A click on a run's name shows its arguments, machine, log and checkpoints."""
    page.click("#table tbody tr:nth-child(3) .name")
    assert page.read("document.getElementById('run-title').textContent") == "Run 003"
    shown = page.read("document.getElementById('detail').textContent")
    for text in ("lr", "0.3", "platform", "exp_8.pth", "epoch 8: accuracy", "torch"):
        assert text in shown


def test_leaderboard_and_checkpoints(page: Page) -> None:
    """Each run with both scores is a point, and the best checkpoints of all runs come first."""
    assert page.read("document.querySelectorAll('#leaderboard circle[data-run]').length") == 7
    row = "document.querySelector('#checkpoints tbody tr').textContent"
    assert page.read(row).startswith("10078")  # rank 1, run 007, epoch 8


@pytest.mark.parametrize("scheme", ["light", sweep("dark")])
def test_fits_a_phone(page: Page, scheme: str) -> None:
    """On 390 pixels the page does not move sideways, in light and in dark."""
    page.show(390, 844, scheme)
    page.read("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.settle()
    assert page.read("document.documentElement.scrollWidth") == 390
    back = page.read("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back)[:3])) > 384) == (scheme == "light")
