from __future__ import annotations

import base64
import errno
import json
import math
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mounts import tmpfs

from batteries import CheckpointManager, JsonLinesLogger, get_logger, start_run
from batteries.report import write_report
from batteries.report._contents import Text
from batteries.report._curves import Curve
from batteries.report._live import LiveReport
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


def points_of(curve: list[Any]) -> tuple[list[float], list[float | None]]:
    """Steps and values of a curve of the page, read without its script."""
    steps, values = curve[3:]
    if len(steps) > 1:
        first, unit, width, text = steps
        bytes_ = base64.b64decode(text)
        parts = [bytes_[at : at + width] for at in range(0, len(bytes_), width)]
        distances = [unit * int.from_bytes(part, "little") for part in parts]
        steps = [[first + sum(distances[:index]) for index in range(len(parts) + 1)]]
    if isinstance(values, str):
        bytes_ = base64.b64decode(values)
        floats = [
            struct.unpack(">f", bytes_[at : at + 3] + b"\0")[0] for at in range(0, len(bytes_), 3)
        ]
        values = [value if math.isfinite(value) else None for value in floats]
    return steps[0], values


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
    assert [curve[:2] for curve in first["curves"]] == [
        ["train/loss", "step"], ["valid/loss", "step"], ["valid/accuracy", "step"], ["lr", "step"]
    ]  # fmt: skip
    assert first["epochs"] == [list(range(1, 9))] * 2  # what checkpoints say of valid/accuracy
    assert [each["epoch"] for each in first["checkpoints"]] == [7, 8]
    assert [data["shared"][place] for place in first["facts"]["arguments"]] == [
        ["lr", "0.1"], ["model", '{"layers": [64, 1]}'], ["note", EVIL]
    ]  # fmt: skip
    assert "epoch 8: accuracy" in first["log"]
    columns = data["columns"]
    assert (columns["test"][0], columns["leaderboard.public"][0]) == (0.805, 0.81)
    assert columns["valid/loss.last"][0] == pytest.approx(math.exp(-0.8) + 0.008)
    assert data["arguments"] == ["lr", "model.layers", "note", EVIL]
    assert data["best"][0] == 6  # accuracy grows with the learning rate


def test_stages_and_gaps(logdir: Path) -> None:
    """Each stage has the curves of its own file; the page says whether the scores move together."""
    with start_run("runs") as run:
        for stage in ("head", "full"):
            with JsonLinesLogger(run.path / "metrics" / stage) as lines:
                lines.log_metrics({"train": {"loss": 0.5}, "lr": 0.1}, 1)
    [found] = runs_of("runs")
    assert [curve[0] for curve in found["curves"]] == [
        "full/train/loss", "full/lr", "head/train/loss", "head/lr"
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


def test_ctrl_c_ends_a_live_page(logdir: Path) -> None:
    """Ctrl-C ends `report --watch` with exit code 0, and without a word."""
    command = [sys.executable, "-m", "batteries", "report", str(logdir), "--watch"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().endswith("press Ctrl-C to stop\n")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0


def test_why_a_run_was_stopped() -> None:
    """The page says why a run was stopped, in the table and among its starts."""
    with pytest.raises(KeyboardInterrupt), start_run("runs", {}):
        raise KeyboardInterrupt
    data = data_of(write_report("runs"))
    assert (data["columns"]["state"], data["columns"]["why"]) == (["stopped"], ["SIGINT"])
    assert [start["why"] for start in data["runs"][0]["sessions"]] == ["SIGINT"]


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
    assert 400_000 < page.stat().st_size < 1_000_000
    last = data_of(page)["runs"][-1]
    assert re.match(r"\[[\d,]+ bytes before this\]\nan epoch", last["log"])
    assert all(len(points_of(curve)[0]) >= 40 for curve in last["curves"])


def test_few_runs_lose_nothing(logdir: Path) -> None:
    """Where there is room, every point and every line is on the page."""
    run = data_of(write_report(logdir))["runs"][0]
    assert run["log"] == (logdir / "001/log.txt").read_text()
    assert [points_of(curve)[0] for curve in run["curves"]] == [[1, 2, 3, 4, 5, 6, 7, 8]] * 4


# ---------------------------------------------------------------- points and lines


@pytest.mark.parametrize("most", [4, 10, 101])
def test_thinned_curves(most: int) -> None:
    """Of many points the first, the last, the highest and the lowest remain."""
    values = [math.sin(step / 7) + step / 1000 for step in range(1000)]
    values[500], values[700] = 99.0, -99.0
    kept = Curve("loss", range(1000), values).thinned(most)
    assert len(kept) <= most
    steps, written = points_of(kept.written())
    found = dict(zip(steps, written, strict=True))
    assert [found[step] for step in (0, 500, 700, 999)] == [
        pytest.approx(values[step], rel=1e-5) for step in (0, 500, 700, 999)
    ]


def test_a_gap_stays_one() -> None:
    """A value that is not finite leaves its gap in a thinned curve."""
    values = [float(step) for step in range(1000)]
    values[500], values[501] = math.nan, math.inf
    thinned = Curve("loss", range(1000), values).thinned(100)
    steps, written = points_of(thinned.written())
    assert [step for step, value in zip(steps, written, strict=True) if value is None] == [500]
    assert thinned.lost == 2


@pytest.mark.parametrize(
    "steps", [[1, 2, 4], [100, 700, 70_000], [0.5, 1.5, 3], [5], [7, 1e9, 2e15]]
)
@pytest.mark.parametrize(
    "values", [[1.5, math.nan, -2e-30], [1e-44, 5, 6], [1e200, -1e200, math.inf]]
)
def test_points_are_written(steps: list[float], values: list[float]) -> None:
    """Steps of any size and values of any range reach the page: steps exact, values to 5 digits."""
    values = values[: len(steps)]
    found = points_of(Curve("loss", steps, values).written())
    assert found[0] == steps
    assert found[1] == [
        pytest.approx(value, rel=1e-5) if math.isfinite(value) else None for value in values
    ]


def test_steps_that_come_again() -> None:
    """A step that was logged again has its last value, also where other metrics stand between."""
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/run.json").write_text('{"sessions": [{}]}')
    lines: list[tuple[int, dict[str, Any]]] = [
        (1, {"a": 0.5}), (2, {"a": 0.4, "b": 1}), (1, {"a": 0.3, "b": 2}), (1, {"a": 0.25}),
        (3, {"a": math.nan}),
    ]  # fmt: skip
    text = "".join(json.dumps({"step": step, "metrics": metrics}) + "\n" for step, metrics in lines)
    Path("runs/a/metrics.jsonl").write_text(text)
    [run] = runs_of("runs")
    assert [points_of(curve) for curve in run["curves"]] == [
        ([1, 2, 3], [0.25, pytest.approx(0.4, rel=1e-5), None]), ([1, 2], [2, 1])
    ]  # fmt: skip
    assert run["curves"][0][2] == 1  # not finite


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
        ("scores.json", '{"test": ', "scores.json is not a file of record_scores: Expecting"),
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
        ("metrics.jsonl", '5\n{"step": 1, "metrics": {"loss": 1}}\n', "1 lines are not JSON"),
        ("metrics.jsonl", '{"step": 1, "metrics": {"loss": 1}}\n{"st', "last line is incomplete"),
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
    found = [(curve[0], points_of(curve)[1]) for curve in run["curves"]]
    assert found == [("a", [None]), ("d", [1])]


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
    first, second = (set(map(tuple, (c[:2] for c in run["curves"]))) for run in runs_of("runs"))
    assert first == {("loss", "step")}
    scores = {(f"{stage}/loss by epoch", "epoch") for stage in ("head", "full")}
    assert second == {("perplexity", "step"), *scores}


# ---------------------------------------------------------------- pictures


def test_pictures_of_runs(tmp_path: Path) -> None:
    """Figures, texts and histograms are on the page by name and step, as long as there is room."""
    with start_run(tmp_path / "runs") as run, JsonLinesLogger(run) as lines:
        for step in range(30):
            lines.log_image("sample", np.full((8, 8), step / 30), step)
        lines.log_text("notes", EVIL, 3)
        with JsonLinesLogger(run.path / "metrics/head") as own:  # beside the lines of a stage
            own.log_image("sample", np.zeros((2, 2)), 1)
        lines.log_histogram("weights", [1.0, 2.0, math.nan], 3, bins=2)
    [found] = data_of(write_report(tmp_path / "runs"))["runs"]
    media = [(kind, name, step) for kind, name, step, _ in found["media"]]
    assert media[-2:] == [("histogram", "weights", 3), ("text", "notes", 3)]
    assert len(media) == 15
    assert media[0] == ("figure", "head/sample", 1)
    assert media[12] == ("figure", "sample", 29)
    assert base64.b64decode(found["media"][12][3])[:8] == b"\x89PNG\r\n\x1a\n"
    assert found["media"][13][3] == [[1, 1], 1.0, 2.0, 1]
    assert found["media"][14][3] == EVIL


BAD_ITEMS: dict[str, Any] = {
    "elsewhere": {"figure": {"a": "../../secret.png"}},
    "absolute": {"figure": {"a": "/etc/passwd"}},
    "no-picture": {"figure": {"a": "run.json"}},
    "bomb": {"figure": {"a": "bomb.png"}},
    "number": {"figure": {"a": 5}},
    "edges": {"histogram": {"a": {"counts": [1, 2], "edges": [0, 1]}}},
    "texts": {"histogram": {"a": {"counts": ["x"], "edges": [0, 1]}}},
    "list": {"text": {"a": [1]}},
}


def test_foreign_pictures() -> None:
    """A picture outside of its run, one too large and what is none are told and not shown."""
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 99_999, 99_999)
    Path("secret.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"secret" * 10)
    for name, line in BAD_ITEMS.items():
        run = Path("runs", name)
        run.mkdir(parents=True)
        (run / "run.json").write_text('{"sessions": [{}]}')
        (run / "bomb.png").write_bytes(head + b"\0" * 20)
        (run / "metrics.jsonl").write_text(json.dumps({"step": 1, **line}) + "\n")
    for run in runs_of("runs"):
        assert run["media"] == [], run["name"]
        assert len(run["problems"]) == 1, run["name"]
        assert "shown" in run["problems"][0]
    live = LiveReport("runs")
    for time in (1, 2):  # one run changes, and the others are not read again
        Path("runs", name, "log.txt").write_text("more" * time)
        found = json.loads(live.data()[1])["runs"]
        assert all(len(each["problems"]) == 1 for each in found)


def test_many_runs_are_read_by_processes(monkeypatch: pytest.MonkeyPatch, logdir: Path) -> None:
    """What several processes read of runs is what one reads; no module beside them is run."""
    for name in ("batteries", "numpy", "pickle"):
        Path(f"{name}.py").write_text("open('ran', 'w').close()")
    monkeypatch.setattr("sys.path", [each for each in sys.path if each])
    alone = data_of(write_report(logdir))
    monkeypatch.setattr("batteries.report._workers._SMALL", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("batteries.report._workers.contents_of", None)  # not by this process
    together = data_of(write_report(logdir))
    del alone["written"], together["written"]
    assert together == alone
    assert not Path("ran").exists()
