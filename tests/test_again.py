"""Commands about one run: what made it, made again; checkpoints that are no longer wanted."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import warm
from test_cli import run
from test_runs import log_run
from test_scoreboard import make_run

from batteries import CheckpointManager, JsonLinesLogger, get_logger, start_run
from batteries.scoreboard import find_run, record_scores

PROGRAM = """
import os, sys
from pathlib import Path
from typing import Any
VERSION = "changed"
if "RECORD" in os.environ:
    from batteries import start_run
    start_run("runs", {"words": sys.argv[1:]}).close()
Path("out.txt").write_text(f"{VERSION} {sys.argv[1:]} {Path.cwd().name}")
"""


def git(*words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    subprocess.run(["git", *who, *words], check=True, capture_output=True)


def recorded(*words: str) -> Path:
    """A run of a program that was changed after its commit, in a directory beside it."""
    for name in ("code", "work"):
        Path(name).mkdir()
    program = Path("code/train.py")
    program.write_text(PROGRAM.replace("changed", "committed"))
    git("init", "code")
    git("-C", "code", "add", "train.py")
    git("-C", "code", "commit", "-m", "first")
    program.write_text(PROGRAM)
    command = [sys.executable, "../code/train.py", *words]
    warm.run(command, cwd="work", env={**os.environ, "RECORD": "1"}, check=True)
    return Path("work/runs/001")


def test_the_same_command() -> None:
    """Where the code is that of the run, its command runs in its directory, with more words."""
    recorded("--lr", "0.2")
    printed = run("rerun", "1").output.splitlines()
    assert printed[0] == f"cd {Path('work').resolve()}"
    assert shlex.split(printed[1]) == [sys.executable, "../code/train.py", "--lr", "0.2"]
    Path("work/out.txt").unlink()
    run("rerun", "1", "--yes", "--", "--lr", "0.1")
    assert Path("work/out.txt").read_text() == "changed ['--lr', '0.2', '--lr', '0.1'] work"


def test_the_code_of_the_run() -> None:
    """Where the code has changed since, that of the run is taken: its commit with its diff."""
    recorded()
    program = Path("code/train.py")
    program.write_text(PROGRAM.replace("changed", "new"))
    git("-C", "code", "commit", "-am", "second")
    run("rerun", "1", "--yes")
    assert Path("work/out.txt").read_text() == "changed [] work"
    assert "worktree add" not in run("rerun", "1").output  # it is there
    run("rerun", "1", "--yes", "--current-code")
    assert Path("work/out.txt").read_text() == "new [] work"
    [checked_out] = Path("code/.git/batteries").iterdir()
    (checked_out / "train.py").write_text("")
    assert "then remove it with git worktree remove" in run("rerun", "1", code=1).output


def test_a_foreign_repository_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository whose configuration names programs is asked for code only where the user is."""
    recorded()
    Path("code/.gitattributes").write_text("*.py filter=evil")
    git("-C", "code", "config", "filter.evil.clean", f"touch {Path('ran').resolve()}; cat")
    Path("code/train.py").write_text(PROGRAM.replace("changed", "else"))
    assert "with which git may run programs: cd /" in run("rerun", "1", code=1).output
    assert not Path("ran").exists()
    run("rerun", "1", "--current-code")
    monkeypatch.chdir("code")
    assert "worktree add" in run("rerun", "../work/runs/001").output


def test_a_program_that_changes_its_directory() -> None:
    """The command runs where the program was started, not where the program went before its run."""
    begin = "import os; os.makedirs('out', exist_ok=True); os.chdir('out')"
    Path("train.py").write_text(f"{begin}\n{PROGRAM}")
    warm.run([sys.executable, "train.py"], env={**os.environ, "RECORD": "1"}, check=True)
    Path("out/out.txt").unlink()
    run("resume", "1", "--logdir", "out/runs", "--yes")
    assert Path("out/out.txt").read_text() == "changed [] out"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs Python that has a safe path")
def test_modules_of_the_run() -> None:
    """`python -m` takes module and packages of the run's code, and runs where it ran."""
    Path("code/src").mkdir(parents=True)
    module, package = Path("code/trained.py"), Path("code/src/packaged.py")
    module.write_text(
        "from packaged import NAME\n" + PROGRAM.replace("{VERSION}", "{NAME} {VERSION}")
    )
    package.write_text("NAME = 'old'")
    git("init", "code")
    git("-C", "code", "add", ".")
    git("-C", "code", "commit", "-m", "first")
    path = os.pathsep.join(["src", *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "RECORD": "1", "PYTHONPATH": path}
    warm.run([sys.executable, "-m", "trained"], cwd="code", env=environment, check=True)
    module.write_text("raise SystemExit('new')")
    package.write_text("NAME = 'new'")
    run("resume", "1", "--yes")
    assert Path("code/out.txt").read_text() == "old changed [] code"


def test_secrets_are_given_again() -> None:
    """A secret of the command is not recorded; the command does not run until it is given again."""
    recorded("--token", "t0p-5ecret", "--lr", "1")
    assert "t0p" not in Path("work/runs/001/run.json").read_text()
    output = run("rerun", "1", "--yes", code=1).output
    assert "secrets of the command were not recorded (***): pass them again" in output
    assert "were not recorded" not in run("rerun", "1", "--", "--token", "***").output
    run("rerun", "1", "--yes", "--", "--token", "t1")
    assert Path("work/out.txt").read_text() == "changed ['--lr', '1', '--token', 't1'] work"


def test_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that is started to resume a run goes on with it, whatever it asks for; once."""
    with start_run("runs", {"lr": 1}) as first, start_run("runs", {"lr": 2}, new=True):
        pass
    variable = run("resume", "1", "--current-code").output.splitlines()[1].split()[0]
    name, path = variable.split("=")
    monkeypatch.setenv(name, path)
    with pytest.warns(match="asks for .*001, which is not in .*elsewhere, so another run begins"):
        other = start_run("elsewhere", new=True)
    with other:
        assert not other.resumed
    with start_run("runs", {"lr": 3}, new=True) as again:
        assert (again.path.resolve(), again.resumed) == (first.path.resolve(), True)
    with start_run("runs", new=True) as third:
        assert not third.resumed
    with start_run("runs"):
        assert "004 is running" in run("resume", "4", "--yes", code=1).output


def test_runs_without_a_command() -> None:
    """A run that no command has made is told so."""
    path = make_run([0.5])
    record = json.loads((path / "run.json").read_text())
    record["sessions"][0]["launch"] = ["python", "-m", "ipykernel_launcher"]
    (path / "run.json").write_text(json.dumps(record))
    assert "was started in a notebook" in run("rerun", "1", code=1).output
    del record["sessions"][0]["launch"], record["sessions"][0]["command"]
    (path / "run.json").write_text(json.dumps(record))
    assert "has no command: only runs of start_run" in run("rerun", "1", code=1).output


def test_show() -> None:
    """A run is shown with its arguments, its end, its scores, its checkpoints and its log."""
    path = make_run([0.8, 0.9], {"lr": 0.1, "model": {"width": 8}})
    get_logger("show", log_file=path / "log.txt").info("the last line")
    record_scores(path, leaderboard=0.7, message="first try")
    output = run("show", "1").output
    for text in ("finished, started 20", "model.width: 8", "validation: 0.9", "the last line",
                 "first try", "exp_2.pth", "leaderboard.public: 0.7", "directory: /"):  # fmt: skip
        assert text in output, text
    told = json.loads(run("show", "1", "--json").output)
    assert [each["epoch"] for each in told["checkpoints"]] == [2]
    assert told["session"]["args"]["model"] == {"width": 8}
    log_run({}, [0.5])
    assert "valid/loss" in run("show", "2").output


def test_prune() -> None:
    """Checkpoints of the runs that the rules name are listed, and removed after a yes."""
    for score in (0.5, 0.9, 0.7):
        make_run([score])
    failed = start_run("runs", new=True)
    CheckpointManager(failed, sharded=True).process(0.1, 1, {"epoch": 1})
    failed.close("failed")
    before = {path for path in Path("runs").rglob("*") if path.is_file()}
    assert "expected a rule" in run("prune", "runs", code=2).output
    command = [sys.executable, "-m", "batteries", "prune", "--keep-best", "1"]
    asked = warm.run(command, input=b"", capture_output=True)
    assert b"Remove these checkpoints? [y/N]" in asked.stdout
    assert asked.returncode == 1
    assert {path for path in Path("runs").rglob("*") if path.is_file()} == before
    run("prune", "--keep-best", "1", "--filter", "state=finished", "--yes")
    kept = {path.parts[1] for path in Path("runs").rglob("*.pth")}
    assert kept == {"002", "004"}
    run("prune", "--state", "failed", "--yes")
    gone = before - {path for path in Path("runs").rglob("*") if path.is_file()}
    assert {path.parts[1] for path in gone} == {"001", "003", "004"}
    assert not any(path.suffix in (".json", ".jsonl", ".txt") for path in gone)
    assert find_run("runs/001").validation == 0.5
    assert not list(Path("runs/004").glob("*/*"))
    with start_run("runs") as running:
        CheckpointManager(running).process(0.1, 1, {"epoch": 1})
        assert "no checkpoints are to be removed" in run("prune", "--state", "running").output


def test_what_may_be_running_is_not_pruned() -> None:
    """Another run inside a failed one stays, and one without a record unless it is asked for."""
    outer = start_run("runs")
    with start_run(outer.path / "trial") as inner:
        CheckpointManager(inner).process(0.1, 1, {"epoch": 1})
        JsonLinesLogger(inner).log_metrics({"loss": 1.0}, 1)
        outer.close("failed")
        found = find_run(outer)
        assert (found.state, found.stages, found.metrics) == ("failed", [], {})
        assert "no checkpoints" in run("prune", "--state", "failed", "--yes").output
    bare = make_run([0.5])
    (bare / "run.json").unlink()
    assert "1 runs without a readable record" in run("prune", "--keep-best", "0", "--yes").output
    assert list(bare.rglob("*.pth"))
    assert "Invalid value for '--state'" in run("prune", "--state", "faild", code=2).output
    run("prune", "--state", "unknown", "--yes")
    assert not list(bare.rglob("*.pth"))


def test_one_bad_file_hides_nothing() -> None:
    """A log, checksums or a stage that cannot be read are told, and all else is shown and done."""
    for score in (0.5, 0.9):
        make_run([score], {"lr": score})
    for name in ("log.txt", "checksums.jsonl"):
        Path("runs/001", name).mkdir()
        Path("runs/002", name).touch()
    path = Path("runs/001/run.json")
    record = json.loads(path.read_text())
    told = {"metric": "accuracy", "score": 1.0, "minimization": False}
    bad = (("../002", 1), (str(Path("runs/002").resolve()), 1), ("far", 10**30), ("out", 1))
    record["sessions"][0]["stages"] = [{"stage": s, "epoch": e, **told} for s, e in bad]
    path.write_text(json.dumps(record))
    shown = run("show", "1").output
    assert "Is a directory: 'runs/001/log.txt'" in shown
    assert shown.count("has an impossible stage") == 3
    assert "exp_1.pth" in shown
    compared = run("compare", "1", "2").output
    assert "0.9000" in compared
    assert "Is a directory: 'runs/001/checksums.jsonl'" in compared
    Path("runs/001/out").symlink_to(Path().resolve())
    assert "001 is left out: " in run("prune", "--keep-best", "0", "--yes").output
    assert {path.parts[1] for path in Path("runs").rglob("*.pth")} == {"001"}


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_export(kind: str) -> None:
    """The table and all logged values are files that polars reads, with runs as texts."""
    log_run({"lr": 0.1}, [0.5, 0.3])
    read: Any = {"csv": pl.read_csv, "json": pl.read_json, "parquet": pl.read_parquet}[kind]
    run("export", "-o", f"table.{kind}")
    run("export", "--metrics", "-o", f"values.{kind}")
    table, values = read(f"table.{kind}"), read(f"values.{kind}")
    assert table["lr"].to_list() == [0.1]
    assert table["run"].dtype == values["run"].dtype == pl.String
    assert table["run"].to_list() == values["run"].unique().to_list() == ["runs/001"]
    assert values.filter(pl.col("metric") == "valid/loss")["value"].to_list() == [0.5, 0.3]
    make_run([0.5])
    run("export", "runs/002", "--metrics", "-o", "none.csv")
    assert Path("none.csv").read_text() == "run,metric,step,time,value\n"
    assert "expected .csv, .json or .parquet" in run("export", "-o", "table.xls", code=1).output
