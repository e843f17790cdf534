from __future__ import annotations

import fcntl
import json
import math
import os
import pty
import re
import shutil
import socket
import struct
import subprocess
import sys
import termios
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from click.testing import CliRunner, Result
from sweeps import sweep
from test_runs import log_run
from test_scoreboard import make_run
from torch import nn

import batteries
from batteries import CheckpointManager, Predictions, make_checkpoint, save_checkpoint, start_run
from batteries.cli import main
from batteries.scoreboard import record_scores


def run(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == code, result.output
    return result


def outputs(*words: str) -> tuple[str, str]:
    """What a command says in its two outputs, which the runner of click 8.1 does not separate."""
    command = [sys.executable, "-m", "batteries", *words]
    done = warm.run(command, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


@pytest.fixture
def _three_runs() -> None:
    for scores, lr in (([0.8, 0.9], 0.1), ([0.95], 0.2), ([0.7], 0.3)):
        make_run(scores, {"lr": lr})


@pytest.mark.usefixtures("_three_runs")
def test_runs() -> None:
    """The table, JSON and CSV have the same runs, sorted and filtered as asked."""
    table = run("runs", "runs").output
    assert all(word in table for word in ("001", "0.9500", "finished", "accuracy"))
    rows = json.loads(run("runs", "runs", "--json", "--sort=-validation").output)
    assert [row["run"] for row in rows] == ["002", "001", "003"]
    lines = run("runs", "runs", "--csv", "--filter", "validation>0.75").output.splitlines()
    assert lines[0].startswith("run,commit,stage,epochs,metric,validation,")
    assert [line.split(",")[0] for line in lines[1:]] == ["runs/002", "runs/001"]
    rows = json.loads(
        run("runs", "runs", "--json", "--filter", "run~^00[12]$", "--filter", "epochs=1").output
    )
    assert [row["run"] for row in rows] == ["002"]
    assert len(json.loads(run("runs", "runs", "--json", "--filter", "test=").output)) == 3
    assert len(json.loads(run("runs", "runs", "--json", "--filter", "test!=").output)) == 0
    for condition in ("validation>abc", "run~["):
        assert f"Error: '{condition}'" in run("runs", "--filter", condition, code=1).output
    assert "there is no column 'loss'" in run("runs", "runs", "--sort", "loss", code=1).output
    assert "expected COLUMN" in run("runs", "runs", "--filter", "loss", code=1).output


def test_last_and_best() -> None:
    """The last and the best of a metric rank differently, and the title says which is shown."""
    for losses, lr in (([0.5, 0.1, 0.6], 0.1), ([0.3, 0.4, 0.2], 0.00001)):
        log_run({"lr": lr, "seed": 1, "same": 2}, losses)
    lower = ("--minimize", "valid/loss")
    best = run("runs", *lower, "--best", "valid/loss").output.splitlines()
    last = run("runs", *lower, "--last", "valid/loss").output.splitlines()
    assert best[0] == "runs: 2 runs, by best valid/loss (lower is better)"
    assert last[0] == "runs: 2 runs, by last valid/loss (lower is better)"
    assert best[1].split()[:3] == ["run", "lr", "valid/loss.best"]
    assert [line.split()[:3] for line in best[3:]] == [
        ["001", "0.1", "0.1000"], ["002", "1e-05", "0.2000"]
    ]  # fmt: skip
    assert [line[:3] for line in last[3:]] == ["002", "001"]
    by_name = run("runs", "--columns", "run,valid/loss", "--sort=-run", *lower).output
    assert by_name.splitlines()[1].split() == ["run", "valid/loss.best"]
    unknown = run("runs", "--best", "valid/loss", code=1).output
    assert "--minimize valid/loss or --maximize valid/loss" in " ".join(unknown.split())
    assert "--maximize valid/loss\n" in run("runs", "--last", "valid/loss", code=1).output


def test_groups_of_runs() -> None:
    """Runs that differ in the seed alone are one line: their mean and spread, the best first."""
    for lr, seed, loss in ((0.1, 1, 0.5), (0.1, 2, 0.7), (0.2, 1, 0.4)):
        log_run({"lr": lr, "seed": seed}, [loss])
    words = ("runs", "--group-by", "lr", "--last", "valid/loss", "--minimize", "valid/loss")
    rows = json.loads(run(*words, "--json").output)
    assert [(row["lr"], row["count"]) for row in rows] == [(0.2, 1), (0.1, 2)]
    assert rows[1]["mean"] == pytest.approx(0.6)
    markdown = run(*words, "--markdown").output.splitlines()
    assert markdown[0] == "| lr | runs | count | mean | std | sem | median | min | max |"
    assert markdown[3].startswith("| 0.1 | 2 | 2 | 0.6000 | 0.1414 |")
    assert r"0.1 & 2 & 2 & 0.6000 & 0.1414" in run(*words, "--latex").output
    rows = json.loads(run(*words[:2], "lr, seed", *words[3:], "--json", "--sort=-seed").output)
    assert [(row["lr"], row["seed"]) for row in rows] == [(0.1, 2), (0.1, 1), (0.2, 1)]


def test_options_that_contradict() -> None:
    """They are named. Before, one of them won."""
    log_run({"lr": 0.1}, [0.5])
    output = run("runs", "--minimize", "loss", "--maximize", "loss", code=2).output
    assert "expected --minimize or --maximize loss; found both" in " ".join(output.split())
    assert "expected one of --json, --csv" in run("runs", "--json", "--csv", code=2).output


def test_tables_of_papers() -> None:
    """What Markdown and LaTeX would take for commands is text in a table."""
    log_run({"a_b": "x|y & 50%"}, [0.5])
    words = ("runs", "--columns", "a_b")
    assert run(*words, "--markdown").output == "| a_b |\n| --- |\n| x\\|y & 50% |\n"
    assert r"x|y \& 50\% \\" in run(*words, "--latex").output


def test_odd_tables() -> None:
    """What is not finite is null in JSON; a table without rows has its heading."""
    log_run({"lr": math.inf}, [math.nan])
    log_run({"lr": 0.5}, [0.5])
    for words in (("show", "1"), ("compare", "1", "2"), ("runs", "runs")):
        assert not {"NaN", "Infinity"} & set(re.findall(r"\w+", run(*words, "--json").output)), (
            words
        )
    assert run("runs", "--filter", "run=9").output == "runs: 0 runs\n"
    for kind, head in (("latex", "run & lr"), ("markdown", "| run | lr |"), ("csv", "run,lr")):
        empty = ("runs", "--filter", "run=9", "--columns", "run,lr", f"--{kind}")
        assert head in run(*empty).output
        assert "lr" in run(*empty, "--group-by", "lr").output
    assert run("runs", "runs/001", "--csv").output.splitlines()[1].startswith("runs/001,")
    Path("runs/001/log.txt").write_text("one\ntwo\n")
    for lines, shown in ((0, []), (1, ["two"]), (5, ["one", "two"])):
        assert json.loads(run("show", "1", "--json", "--lines", f"{lines}").output)["log"] == shown
    assert "99999 is not in the range" in run("report", "--watch", "--port", "99999", code=2).output
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        output = run("report", "--watch", "--port", port, code=1).output
    assert f"port {port} cannot be used: " in output
    assert "Leave out --port, or choose another" in output


@pytest.mark.parametrize("width", [60, 80, 120, 300])
def test_narrow_terminals(width: int) -> None:
    """In a terminal that is too narrow columns are left out, with a word; none is cut short."""
    for number in range(3):
        record_scores(make_run([0.8, number / 10]), test=0.7, leaderboard=0.6)
    output = in_a_terminal(["runs", "runs"], width)
    lines = output.splitlines()
    assert max(map(len, lines)) <= width or "no room for" in max(lines, key=len)
    assert all(text in output for text in ("001", "0.8000", "0.7000", "0.6000", "finished"))
    assert "…" not in output
    assert ("no room for " in output) == (width < 100)
    assert "no room" not in run("runs", "runs").output  # a pipe has no width


def in_a_terminal(words: list[str], width: int) -> str:
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, width, 0, 0))
    command = [sys.executable, "-m", "batteries", *words]
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "xterm"}
    for name in ("COLUMNS", "LINES"):  # of the terminal of the tests
        environment.pop(name, None)
    subprocess.run(command, stdout=end, stderr=end, check=True, env=environment)
    output = os.read(terminal, 100_000).decode()
    os.close(end)
    os.close(terminal)
    return re.sub(r"\x1b\[\d*m", "", output)


def test_names_that_are_commands() -> None:
    """Names of runs are shown as they are: no colour, no picture, no command of the terminal."""
    path = make_run([0.5])
    path.rename("runs/[red]a:fire:\x1b[31m")
    assert "[red]a:fire:\\x1b[31m" in run("runs", "runs").output


def test_a_pipe_that_ends() -> None:
    """A reader that has seen enough, as `head`, is no error."""
    for number in range(20):
        make_run([number / 100], {f"{number}": "many words" * 1000})
    command = [sys.executable, "-m", "batteries", "runs", "runs", "--json"]
    with warm.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as program:
        assert program.stdout is not None
        assert program.stdout.read(1) == b"["
        program.stdout.close()
        assert program.communicate()[1] == b""


@pytest.mark.usefixtures("_three_runs")
def test_a_damaged_run() -> None:
    """A run that cannot be read is told of, and the others are listed."""
    Path("runs/002/run.json").write_text("{")
    told, errors = outputs("runs", "runs", "--json", "--sort", "run")
    assert [row["state"] for row in json.loads(told)] == ["finished", "unreadable", "finished"]
    assert errors.startswith("002: runs/002/run.json is not the record of a run")
    Path("runs/001/metrics.jsonl").write_text("torn\n")
    told = "runs/001/metrics.jsonl: 1 lines are not JSON objects"
    for words in (("compare", "1", "3"), ("prune", "--state", "failed"), ("export", "-o", "a.csv")):
        assert told in run(*words).output, words
    assert "002: runs/002/run.json is not the record of a run" in run("gaps").output


def test_why_a_run_was_stopped() -> None:
    """The table says why a run was stopped."""
    with pytest.raises(KeyboardInterrupt), start_run("runs", {}):
        raise KeyboardInterrupt
    assert re.search(r"state +why .*\n.*\n.*stopped +SIGINT", run("runs").output)


def test_no_runs() -> None:
    """A directory without runs says what a run is."""
    Path("empty").mkdir()
    output = run("runs", "empty", code=1).output
    assert output.startswith("Error: there are no runs in empty: a run is a directory with")


@pytest.mark.usefixtures("_three_runs")
def test_score() -> None:
    """A score is written into the run and seen in the table; a wrong one changes nothing."""
    run("score", "runs/002", "--test", "0.91", "--leaderboard", "0.907", "--name", "public")
    [row] = json.loads(run("runs", "runs", "--json", "--filter", "run=002").output)
    assert (row["test"], row["leaderboard.public"]) == (0.91, 0.907)
    told = json.loads(run("score", "002", "--logdir", "runs", "--test", "0.9", "--json").output)
    assert told["scores"]["leaderboard"] == {"public": 0.907}
    Path("a.csv").write_text("id,p")
    words = ("score", "3", "--file", "a.csv", "--metric", "auc", "--maximize")
    run(*words, "--leaderboard", "0.9", "-m", "with warmup")
    assert "written; 1 submission\n" in run(*words, "--private", "0.8").output
    assert all(word in run("show", "3").output for word in ("with warmup", "a.csv", "0.8000"))
    assert "runs/002/scores.json is written" in run("score", "2", "--test", "0.9").output
    run("score", "2", "--private", "0.8765")
    assert run("show", "2").output.partition("submissions")[2].count("0.8765") == 1
    private = ("score", "1", "--leaderboard", "0.6", "--name", "private")
    run(*private)
    run("score", "1", "--metric", "auc", "--maximize")
    scores = json.loads(Path("runs/001/scores.json").read_text())
    assert (scores["leaderboard"], scores["metric"]) == ({"private": 0.6}, "auc")
    assert "are the same score" in run(*private, "--private", "0.5", code=2).output
    nearest = run("score", "22", "--logdir", "runs", "--test", "1", code=1).output
    assert "there is no run 22; the nearest: runs/002" in nearest
    assert "expected a finite number" in run("score", "runs/002", "--test", "nan", code=1).output
    assert "not a valid float" in run("score", "runs/002", "--test", "high", code=2).output
    assert "expected --test" in run("score", "runs/002", code=2).output
    nearest = run("score", "runs/02", "--test", "1", code=1).output
    assert "Error: there is no run runs/02; the nearest: " in nearest
    assert "runs/002" in nearest


@pytest.mark.usefixtures("_three_runs")
def test_compare() -> None:
    """Arguments and scores stand side by side, and predictions tell noise from difference."""
    output = run("compare", "runs/001", "runs/002").output
    assert all(word in output for word in ("lr", "0.1", "0.2", "0.9000", "0.9500"))
    target = np.arange(300) % 2
    for name, wrong in (("001", 60), ("002", 20)):
        outputs = Predictions(300)
        own = np.where(np.arange(300) < wrong, 1 - target, target)
        probability = np.where(own, 0.9, 0.1).astype(np.float32)
        outputs.add(range(300), probability=torch.from_numpy(probability), target=target)
        outputs.save(f"runs/{name}/oof.parquet")
    words = ("compare", "001", "002", "--logdir", "runs", "--predictions", "oof.parquet")
    output = run(*words).output
    assert "difference +0.1333" in output
    assert "002 is better, beyond the noise of 300 rows\n(this does not" in output
    swapped = [words[0], "002", "001", *words[3:]]
    assert "002 is better" in run(*swapped, "--metric", "log_loss").output
    told = json.loads(run(*words, "--json").output)
    assert told["arguments"] == {"lr": [0.1, 0.2]}
    assert json.loads(run(*words, "--json", "--metric", "roc_auc").output)["by_rows"]
    assert json.loads(run(*words, "--json", "--metric", "log_loss").output)["by_rows"]
    Path("runs/004").mkdir()
    record_scores("runs/004", test=0.5)
    lines = run("compare", "1", "4", "--logdir", "runs").output.splitlines()
    assert any(line.split() == ["arguments", "001", "004"] for line in lines)
    three = run("compare", "1", "2", "3").output
    assert "001 and 003: the same commit" in three or "the commit of one run is not known" in three
    assert three.count("0.9500") == 1
    assert "has no 'label'" in run(*words, "--target", "label", code=1).output
    assert "--predictions needs one in each run" in run(*words[:-1], "no.npy", code=1).output


@pytest.mark.usefixtures("_three_runs")
def test_compare_other_targets() -> None:
    """Predictions are not compared by the targets of another run, unless these are the same."""
    words = ("compare", "001", "002", "--logdir", "runs", "--predictions", "oof.npy")
    for target in ([1, 0], [1.0, 0.0], [1, 1], ["1", "0"]):
        for name, own in (("001", [1, 0]), ("002", target)):
            kinds = [("id", int), ("probability", float), ("target", np.asarray(own).dtype)]
            rows = list(zip(range(2), (0.9, 0.2), own, strict=True))
            np.save(f"runs/{name}/oof.npy", np.array(rows, dtype=kinds))
        is_same = target in ([1, 0], [1.0, 0.0])
        output = run(*words, code=0 if is_same else 1).output
        assert ("different targets for the same ids; compare runs of" in output) != is_same


def test_seeds_are_no_difference() -> None:
    """Runs of one configuration do not differ; several seeds of two tell whether these do."""
    for number in range(8):
        kind, seed = divmod(number, 4)
        make_run([0.9 + seed * 0.01 + kind * 0.005], {"seed": seed, "lr": 0.1 + kind})
    words = ("--logdir", "runs")
    assert "not beyond the noise of 4 and 4 seeds" in run("compare", "001", "008", *words).output
    for path in (Path("runs/001"), Path("runs/002")):
        record_scores(path, folds=[0.8, 0.9, 0.85] if path.name == "001" else [0.9, 1.0, 0.95])
    same = " ".join(run("compare", "001", "002", *words).output.split())
    assert "have one configuration (their arguments differ only in the seed)" in same
    assert "beyond" not in same
    record_scores("runs/005", folds=[0.9, 0.99, 0.95])
    shutil.rmtree("runs/006")
    shutil.rmtree("runs/007")
    shutil.rmtree("runs/008")
    alone = run("compare", "001", "005", *words).output
    assert "005 is better, beyond the noise of 3 folds\n(this does not include the" in alone


def test_small_numbers_differ() -> None:
    """Learning rates and losses that differ look different, in each table."""
    for lr, loss in ((1e-5, 3.2e-6), (3e-5, 3.3e-6)):
        make_run([loss], {"lr": lr}, "loss", minimization=True)
    table = run("runs", "runs").output
    assert all(text in table for text in ("3.2e-06", "3.3e-06"))
    both = run("compare", "001", "002", "--logdir", "runs").output
    assert all(text in both for text in ("1e-05", "3e-05", "3.2e-06", "3.3e-06"))


def test_gaps() -> None:
    """Whether test moves with validation is said for all runs, and the gap of each."""
    for value in np.linspace(0.5, 0.9, 8):
        record_scores(make_run([float(value)]), test=float(value) - 0.01)
    output = run("gaps", "runs").output
    assert "001: test - validation is -0.0100" in output
    assert "8 runs by accuracy: test moves with validation (rank correlation +1.00" in output
    assert json.loads(run("gaps", "runs", "--json").output)["all"][0]["runs"] == 8
    Path("empty").mkdir()
    assert "there are no runs in empty" in run("gaps", "empty", code=1).output
    Path("other/1").mkdir(parents=True)
    record_scores("other/1", test=0.5)
    assert "no run has both a validation score" in run("gaps", "other").output


def test_one_of_each() -> None:
    """One run, file or tensor is not several, and what was not recorded is not None."""
    path = Path("runs/001/checkpoints")
    manager = CheckpointManager(path, metric="loss", metric_minimization=True)
    manager.process(0.5, 1, {"weight": torch.zeros(1)})
    for name in ("best.pth", "last.pth"):
        (path / name).unlink()
    assert run("runs").output.startswith("runs: 1 run, by")
    assert run("show", "1").output.startswith("runs/001: unknown, ")
    assert "1 tensor, 4 bytes" in run("inspect", str(path / "exp_1.pth")).output
    record_scores("runs/001", test=0.5)
    assert "\n1 run by loss: too few" in run("gaps").output
    Path("a.csv").write_text("id,p\n1,0.5\n")
    assert run("blend", "a.csv", "-o", "b.csv").output == "b.csv has 1 row, the mean of 1 file\n"
    output = run("prune", "--state", "unknown", "--yes").output
    assert "checkpoints of 1 run\n" in output
    assert "1 file is removed" in output


def test_inspect() -> None:
    """A checkpoint's values and tensors are shown; a damaged file is named."""
    model = nn.Linear(3, 2)
    save_checkpoint(make_checkpoint("train", 7, model, metrics={"loss": 0.5}), "a.pth")
    told = json.loads(run("inspect", "a.pth", "--json").output)
    assert (told["values"]["stage"], told["values"]["epoch"]) == ("train", 7)
    assert told["values"]["metrics.loss"] == 0.5
    weight = {"name": "model_state_dict.weight", "shape": [2, 3], "dtype": "float32", "bytes": 24}
    assert told["tensors"][0] == weight
    assert "2 tensors, 32 bytes" in run("inspect", "a.pth").output
    Path("b.pth").write_bytes(b"torn")
    assert "Error: b.pth" in run("inspect", "b.pth", code=1).output


def test_average() -> None:
    """Files, or the best of a directory, are averaged, with batch norm where it is asked for."""
    path = make_run([0.8, 0.9, 0.7]) / "checkpoints"
    run("average", str(path), "--best", "1", "-o", "best.pth")
    assert [part["epoch"] for part in torch.load("best.pth")["averaged"]] == [2]
    norm = nn.BatchNorm1d(2)
    for number in (1.0, 3.0):
        nn.init.constant_(norm.weight, number)
        checkpoint = make_checkpoint("train", int(number), nn.Sequential(norm))
        save_checkpoint(checkpoint, f"{number}.pth")
    words = ("average", "1.0.pth", "3.0.pth", "--weight", "3", "--weight", "1", "-o", "swa.pth")
    assert "swa.pth is the average of 1.0.pth, 3.0.pth" in run(*words).output
    assert torch.load("swa.pth")["model_state_dict"]["0.weight"].tolist() == [1.5, 1.5]
    Path("factory.py").write_text(
        "import torch\nmodel = lambda: torch.nn.Sequential(torch.nn.BatchNorm1d(2))\n"
        "loader = lambda: [torch.full((4, 2), 7.0)]\n"
    )
    run(*words, "--model", "factory:model", "--loader", "factory:loader")
    assert torch.load("swa.pth")["model_state_dict"]["0.running_mean"].tolist() == [7.0, 7.0]
    assert "factory has no nothing" in run(*words, "--model", "factory:nothing", code=1).output
    assert "expected MODULE:FUNCTION" in run(*words, "--model", "factory:", code=2).output
    output = run(*words, "--model", "factory:torch", code=1).output
    assert "--model: factory:torch raises TypeError: 'module' object is not callable" in output
    Path("broken.py").write_text("float('a')")
    output = run(*words, "--loader", "broken:loader", code=1).output
    assert "--loader: broken cannot be imported (ValueError: could not convert" in output
    save_checkpoint(make_checkpoint("train", 1, nn.Linear(1, 1)), "other.pth")
    output = run("average", "1.0.pth", "other.pth", "-o", "none.pth", code=1).output
    assert "other.pth" in output
    assert not Path("none.pth").exists()


def test_blend() -> None:
    """Files are blended by id; an id that is missing is named with its file."""
    Path("a.csv").write_text("id,target\n7,0.25\n9,0.5\n")
    Path("b.csv").write_text("id,target\n9,1.0\n7,0.75\n")
    words = ("blend", "a.csv", "b.csv", "-o", "blend.csv")
    assert "blend.csv has 2 rows, the mean of 2 files" in run(*words).output
    assert Path("blend.csv").read_text() == "id,target\n7,0.5\n9,0.75\n"
    run(*words, "--weight", "1", "--weight", "3")
    assert Path("blend.csv").read_text() == "id,target\n7,0.625\n9,0.875\n"
    Path("b.csv").write_text("id,target\n9,1.0\n")
    output = run(*words, code=1).output
    assert "b.csv" in output
    assert "7" in output


@pytest.mark.parametrize(
    "command",
    [
        "report runs",
        sweep("average runs/001/checkpoints --best 1 -o swa.pth"),
        sweep("blend a.csv b.csv -o blend.csv"),
    ],
)
def test_bars(command: str) -> None:
    """Work that may be long shows a bar on a terminal, and says nothing elsewhere."""
    make_run([0.9, 0.8])
    for name in ("a.csv", "b.csv"):
        Path(name).write_text("id,target\n7,0.25\n")
    words = [sys.executable, "-m", "batteries", *command.split()]
    assert f"{words[3]}:   0%|" in in_a_terminal(command.split(), 80)
    assert warm.run(words, capture_output=True, check=True).stderr == b""


@pytest.mark.parametrize("kind", ["device", "dp", "ddp", "kfold", "submission"])
def test_new(kind: str) -> None:
    """The copied experiment is the example, and says how it is run."""
    assert "experiment.py" in run("new", kind, "mine").output
    names = {path.name for path in Path("mine").iterdir()}
    more = {"architectures.py"} if kind == "submission" else set()
    assert names == {"README.md", "datasets.py", "experiment.py", "models.py"} | more
    texts = [path.read_text(encoding="utf-8") for path in Path("mine").iterdir()]
    assert [text for text in texts if f"examples/{kind}/" in text] == []  # its commands run there
    command = [sys.executable, "experiment.py", "--help"]
    result = warm.run(command, cwd="mine", capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "mine exists already" in run("new", kind, "mine", code=1).output


def test_env() -> None:
    """What a bug report needs is printed, as text and as JSON."""
    assert json.loads(run("env", "--json").output)["packages"]["torch"] == version("torch")
    assert f"torch {version('torch')}" in run("env").output


def test_help() -> None:
    """Every command has a help with an example; an unknown one is refused."""
    for name in main.commands:
        assert f"batteries {name}" in run(name, "--help").output.partition("\n\n")[2], name
    assert "No such command" in run("rums", code=2).output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    """What a shell needs to complete commands is printed."""
    assert "_BATTERIES_COMPLETE" in run("completion", shell).output


def test_installed_command() -> None:
    """The command is installed with the package."""
    program = Path(sys.executable).with_name("batteries")
    result = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"batteries, version {batteries.__version__}\n"
