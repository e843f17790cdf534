from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from mounts import tmpfs
from ranks import run_ranks
from sweeps import sweep
from torch.utils.data import Dataset

from batteries import (
    CheckpointError,
    CheckpointManager,
    JsonLinesLogger,
    PreemptionGuard,
    data,
    run_directory,
    seed_all,
    set_backends,
    start_run,
)
from batteries._backends import adopt_backends
from batteries._environment import code
from batteries._masking import masked, masked_command
from batteries._run import _launch
from batteries._rundir import alive as signs
from batteries._rundir.alive import state_of
from batteries._rundir.record import read_record, write_record
from batteries._rundir.scores import read_scores
from batteries._seeding import seed_worker
from batteries.loggers import read_lines
from batteries.scoreboard import (
    best_first,
    check_gap,
    check_gaps,
    compare,
    find_run,
    read_run,
    read_runs,
    record_scores,
)


def test_numbers_never_repeat() -> None:
    """Each call has a new directory, and no existing file is touched."""
    first = run_directory("runs")
    (first / "log.txt").write_text("precious")
    assert [run_directory("runs").name for _ in range(3)] == ["002", "003", "004"]
    assert (first / "log.txt").read_text() == "precious"


def test_resume() -> None:
    """Resuming takes the newest run, or makes the first."""
    assert run_directory("runs", resume=True).name == "001"
    (Path("runs") / "1000").mkdir()
    (Path("runs") / "notes").mkdir()
    assert run_directory("runs", resume=True).name == "1000"
    assert run_directory("runs").name == "1001"


def test_finished_runs_are_not_resumed() -> None:
    """A run that has written its last file is finished: the next one is new."""
    first = run_directory("runs", resume=True, unless="scores.json")
    assert run_directory("runs", resume=True, unless="scores.json") == first
    (first / "scores.json").touch()
    assert run_directory("runs", resume=True, unless="scores.json").name == "002"


def ask_for_one(logdir: str) -> str:
    return run_directory(logdir).name


def test_ranks_agree(tmp_path: Path) -> None:
    """All ranks of a program get the same directory."""
    assert run_ranks(ask_for_one, str(tmp_path), world_size=3) == ["001"] * 3


def ask_alone(logdir: str) -> list[str]:
    return [run_directory(logdir).name for _ in range(20)]


def test_programs_do_not_collide(tmp_path: Path) -> None:
    """Programs that start at the same moment get different directories."""
    alone = {"WORLD_SIZE": "1", "RANK": "0"}
    results = run_ranks(ask_alone, str(tmp_path), world_size=3, group=False, env=alone)
    names = [name for result in results for name in result]
    assert len(set(names)) == len(names) == 60


def test_logdir_that_is_a_file() -> None:
    """A log directory that is a file is named."""
    Path("runs").touch()
    with pytest.raises(NotADirectoryError, match="runs is a file"):
        run_directory("runs")


# ---------------------------------------------------------------- the record


def last_session(path: str | Path) -> dict[str, Any]:
    record = read_record(path)
    assert record is not None
    return dict(record["sessions"][-1])


def test_what_is_recorded() -> None:
    """The record has arguments, command, versions, machine, times and how the run ended."""
    args = argparse.Namespace(lr=0.1, path=Path("data"), api_key="abc", nested={"token": "abc"})
    with start_run("runs", args) as run:
        assert last_session(run.path)["state"] == "running"
    session = last_session("runs/001")
    secret = {"api_key": "***", "nested": {"token": "***"}}
    assert session["args"] == {"lr": 0.1, "path": "data", **secret}
    assert session["packages"]["torch"] == version("torch")
    assert session["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (session["world_size"], session["state"]) == (1, "finished")
    assert session["started"] <= session["stopped"]
    assert {"cpu", "gpus", "driver", "host", "platform", "memory", "git"} <= set(session)


@dataclasses.dataclass
class Arguments:
    lr: float = 0.1
    api_key: str = ""


class Config(dict[str, Any]):
    """A mapping that has a `__dict__`, which is empty."""


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (None, {}),
        (Arguments(), {"lr": 0.1, "api_key": ""}),
        ({"lr": 0.2}, {"lr": 0.2}),
        (collections.OrderedDict(lr=0.2), {"lr": 0.2}),
        (collections.UserDict(lr=0.2), {"lr": 0.2}),
        (Config(lr=0.2), {"lr": 0.2}),
        ({1: {(2, 3): 0.2}}, {"1": {"(2, 3)": 0.2}}),
        ({"a": Arguments(api_key="abc")}, {"a": {"lr": 0.1, "api_key": "***"}}),
        ({"a": [argparse.Namespace(password=1)]}, {"a": [{"password": "***"}]}),
        ({"uris": {"https://me:word@host"}}, {"uris": ["https://***@host"]}),
    ],
)
def test_arguments_of_any_kind(args: Any, expected: dict[str, Any]) -> None:
    """Arguments of all kinds are recorded by their names, those inside too."""
    with start_run("runs", args) as run:
        assert last_session(run.path)["args"] == expected


@pytest.mark.parametrize(
    "name",
    ["auth", "pwd", "passphrase", "hf_token", "apiKey", "wandb-key", "db_password", "PGPASSWORD"],
)
def test_names_of_secrets(name: str) -> None:
    """A name that has a secret's as a word of its own is masked."""
    assert masked({name: "abc"}) == {name: "***"}
    assert masked_command([f"--{name}", "-abc"]) == [f"--{name}", "***"]


@pytest.mark.parametrize("name", ["tokenizer", "max_tokens", "max-tokens", "author", "compass"])
def test_names_of_no_secrets(name: str) -> None:
    """A name that begins or ends like a secret's is none."""
    assert masked({name: "abc"}) == {name: "abc"}
    assert masked_command([f"--{name}", "abc"]) == [f"--{name}", "abc"]


def test_secrets_in_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error that ended a run has no secrets in it."""
    monkeypatch.setenv("WANDB_API_KEY", "c0ffee123456")
    with pytest.raises(ValueError, match="c0ffee"), start_run("runs"):
        raise ValueError("401 for c0ffee123456 at https://me:word@host")
    assert last_session("runs/001")["error"] == "ValueError: 401 for *** at https://***@host"


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ValueError("no data"), "failed"),
        (KeyboardInterrupt(), "stopped"),
        (SystemExit(143), "stopped"),
        (SystemExit(PreemptionGuard.exit_code), "stopped"),
        (SystemExit(2), "failed"),
        (SystemExit(0), "finished"),
    ],
)
def test_how_it_ended(error: BaseException, state: str) -> None:
    """What ends the `with` is the run's state."""
    with pytest.raises(type(error)), start_run("runs"):
        raise error
    session = last_session("runs/001")
    assert session["state"] == state
    assert (session["error"] is None) == (state != "failed")


def test_an_unfinished_run_goes_on() -> None:
    """A failed run goes on in its directory, with its id and one more session."""
    with pytest.raises(ValueError, match="no"), start_run("runs") as first:
        raise ValueError("no")
    with start_run("runs") as again:
        assert (again.path, again.id, again.resumed) == (first.path, first.id, True)
    record = read_record("runs/001")
    assert record is not None
    assert [session["state"] for session in record["sessions"]] == ["failed", "finished"]


def test_nothing_is_clobbered() -> None:
    """After a finished run, or with `new=True`, the next number is taken; a path is that run."""
    with start_run("runs"):
        pass
    with pytest.raises(ValueError, match="no"), start_run("runs") as second:
        raise ValueError("no")
    with start_run("runs", new=True) as third:
        assert (second.path.name, third.path.name) == ("002", "003")
    with start_run("runs/001") as run:
        assert run.resumed
    with pytest.raises(ValueError, match="runs/001 is a run: with new=True"):
        start_run("runs/001", new=True)


class Opaque:
    """An object that says of itself where it lies."""


def crash(logdir: str, args: Any = None, **options: Any) -> Path:
    with suppress(ZeroDivisionError), start_run(logdir, args, **options) as run:
        raise ZeroDivisionError
    return run.path


def test_another_experiment_does_not_go_on() -> None:
    """An unfinished run with other arguments is no place for this one: the error says which."""
    crash("runs", {"lr": 0.1, "data": {"workers": 2, "names": {"b", "a", "c"}}, "loss": Opaque()})
    before = Path("runs/001/run.json").read_bytes()
    with pytest.raises(
        ValueError, match=r"runs/001 is not .* lr was 0.1, is 0.3; data.fold was not given, is 1\. "
    ):
        start_run("runs", {"lr": 0.3, "data": {"workers": 4, "names": {"c", "b", "a"}, "fold": 1},
                           "loss": Opaque()}, may_differ=["data.workers"])  # fmt: skip
    assert Path("runs/001/run.json").read_bytes() == before
    assert not Path("runs/002").exists()


def test_going_on_that_is_asked_for() -> None:
    """The same arguments, named ones that may differ, and a run's own directory go on."""
    first = crash("runs", {"lr": 0.1, "data": {"workers": 2}})
    assert crash("runs", {"data": {"workers": 2}, "lr": 0.1}) == first
    assert crash("runs", {"lr": 0.1, "data": {"workers": 4}}, may_differ=["data"]) == first
    assert crash("runs/001", {"lr": 0.3}) == first
    assert crash("runs", {"lr": 0.3}) == first
    assert crash("runs", {"lr": 0.4}, new=True).name == "002"
    assert run_directory("runs", resume=True).name == "002"
    with start_run("runs", {"lr": 0.4}):
        pass
    assert run_directory("runs", resume=True).name == "003"


def test_other_options_without_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no arguments are given, the options of the command line are compared."""
    monkeypatch.setattr(sys, "argv", ["train.py", "digits", "--lr", "0.1", "--fast"])
    crash("runs")
    monkeypatch.setattr(sys, "argv", ["train.py", "digits", "--lr=0.3", "--fast"])
    with pytest.raises(ValueError, match=r"has other arguments: lr was 0.1, is 0.3\. "):
        start_run("runs")
    assert crash("runs", may_differ=["lr"]).name == "001"


def test_a_run_is_a_path() -> None:
    """What takes a run's directory takes the run."""
    with start_run("runs") as run:
        with JsonLinesLogger(run) as lines:
            lines.log_metrics({"loss": 0.5}, 1)
        record_scores(run, validation=0.9)
        manager = CheckpointManager(run)
        manager.process(score=0.5, epoch=1, checkpoint={"epoch": 1})
        assert (os.fspath(run), str(run)) == ("runs/001", "runs/001")
        assert read_scores(run) == {"validation": 0.9}
        assert [line["step"] for line in read_lines(run)] == [1]
        assert find_run(run).path == read_run(run).path == manager.logdir == run.path
        assert read_record(run) is not None
    with start_run(run) as again:
        assert again.path == run.path
    record_scores(find_run(run), test=0.8)
    assert compare(run, run.path, among=[run]).arguments == {}
    assert [each.path for each in best_first([run, "runs/001"])] == [run.path] * 2
    assert [check.runs for check in check_gaps([run, find_run(run)])] == [2]
    assert check_gap(run) == check_gap("runs/001")
    assert read_scores(find_run(run))["test"] == 0.8


RUN = """
import sys
from batteries import start_run
run = start_run("runs")
print("started", flush=True)
sys.stdin.readline()
"""


def started() -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    process = warm.Popen(
        [sys.executable, "-c", RUN], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def test_two_processes() -> None:
    """A second process is told which one records; when that is killed it goes on."""
    with started() as first:
        with pytest.raises(RuntimeError, match=f"runs/001 is recorded by process {first.pid} on "):
            start_run("runs")
        record = read_record("runs/001")
        assert record is not None
        assert state_of("runs/001", record) == "running"
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert state_of("runs/001", record) == "killed"
    with start_run("runs") as run:
        assert run.resumed


@pytest.mark.parametrize(
    ("end", "state"),
    [
        ("", "finished"),
        ("raise ValueError('no data')", "failed"),
        ("raise SystemExit(75)", "stopped"),
        ("sys.exit(75)", "stopped"),
        ("sys.exit(1)", "failed"),
        ("sys.exit()", "finished"),
        ("raise KeyboardInterrupt", "stopped"),
        ("os.kill(os.getpid(), 15)", "killed"),
    ],
)
@pytest.mark.parametrize("place", ["the module", "a function"])
def test_the_end_of_the_program(place: str, end: str, state: str) -> None:
    """Without a `with`, the end of the program is recorded, and what ended it."""
    lines = ["run = start_run('runs')", end]
    if place == "a function":
        lines = ["def main():", *(f"    {line}" for line in lines), "main()"]
    program = "\n".join(["import os, sys", "from batteries import start_run", *lines])
    warm.run([sys.executable, "-c", program], capture_output=True)
    record = read_record("runs/001")
    assert record is not None
    assert state_of("runs/001", record) == state


def test_cells_that_run_again() -> None:
    """In a notebook a second call goes on with the run; an error of before counts for neither."""
    program = (
        "import sys; sys.ps1, sys.last_value = 'In : ', ValueError('of an earlier cell')\n"
        "from batteries import start_run\n"
        "first = start_run('runs', {'lr': 1})\nagain = start_run('runs', {'lr': 1})\n"
        "first.close('failed'); print(again, again.resumed)"
    )
    result = warm.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout == "runs/001 True\n", result.stderr
    record = read_record("runs/001")
    assert record is not None
    assert [session["state"] for session in record["sessions"]] == ["stopped", "finished"]


def test_a_program_that_begins_a_run_twice() -> None:
    """Elsewhere a second call is refused, with what to close."""
    with start_run("runs") as run:
        with pytest.raises(RuntimeError, match=r"this program records runs/001 already.*close"):
            start_run("runs")
        assert start_run("runs", new=True).path != run.path


def test_a_fork_ends() -> None:
    """The end of a fork is not the end of the run."""
    program = (
        "import os, sys; from batteries import start_run; run = start_run('runs')\n"
        "if os.fork(): os.wait(); os.kill(os.getpid(), 9)"
    )
    warm.run([sys.executable, "-c", program])
    record = read_record("runs/001")
    assert record is not None
    assert state_of("runs/001", record) == "killed"


def run_on_a_full_disk(logdir: Path) -> None:
    with start_run(logdir):
        fill(logdir / "filler")
        raise ValueError("no data")


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 4096):
            pass


def test_a_full_disk(tmp_path: Path) -> None:
    """A record that cannot be written hides no error of the training."""
    with tmpfs(tmp_path / "small", 2**20) as small:
        with (
            pytest.warns(
                UserWarning, match="the end of .*small/001 is not recorded: .*No space left"
            ),
            pytest.raises(ValueError, match="no data"),
        ):
            run_on_a_full_disk(small)
        assert last_session(small / "001")["state"] == "running"


def test_room_again(tmp_path: Path) -> None:
    """How a run ended is recorded when there is room again."""
    with tmpfs(tmp_path / "small", 2**20) as small:
        run = start_run(small)
        fill(small / "filler")
        with pytest.raises(OSError, match="No space left"):
            run.close("failed", "no data")
        (small / "filler").unlink()
        run.close()
        assert last_session(run.path)["error"] == "no data"


def edited(path: str | Path, **values: Any) -> dict[str, Any]:
    """The record of a run whose last session was changed: by another host, as it seems."""
    record = read_record(path)
    assert record is not None
    record["sessions"][-1].update(values)
    write_record(path, record)
    return record


ELSEWHERE = {"boot": "another", "pid": 1}  # the name of the host may be the same


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs, "BEAT", 0.05)
    monkeypatch.setattr(signs, "WATCH", 1.0)


@pytest.mark.parametrize("wrong", [-600, 0, 300])
def test_clocks_of_other_hosts(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the clocks say, a run lives as long as its sign of life moves, and no longer."""
    quick(monkeypatch)
    with started() as first:
        edited("runs/001", **ELSEWHERE)
        path, moving = Path("runs/001/run.json"), threading.Event()

        def beat() -> None:
            for number in itertools.count():
                os.utime(path, (time.time() + wrong + number,) * 2)
                if moving.wait(0.05):
                    return

        beating = threading.Thread(target=beat)
        beating.start()
        assert read_runs("runs")[0].state == "running"
        with pytest.raises(RuntimeError, match=r"runs/001 is recorded by process 1 on .* since"):
            start_run("runs")
        moving.set()
        beating.join()
        first.kill()
    os.utime(path, (time.time() + wrong,) * 2)
    with pytest.warns(UserWarning, match=r"process 1 on .* no sign of life for 1 s: it counts as"):
        start_run("runs").close()


def test_a_replaced_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that another has taken over writes no end, no sign of life, no line, score or save."""
    quick(monkeypatch)
    old = start_run("runs")
    lines, manager = JsonLinesLogger(old), CheckpointManager(old.path / "checkpoints")
    lines.log_metrics({"loss": 0.5}, step=1)
    lines.close()
    record = edited(old.path, **ELSEWHERE)
    own = dict(record["sessions"][-1])
    record["sessions"].append({**own, "id": "b", "pid": 2, "host": "b", "started": "later"})
    write_record(old, record)
    later = JsonLinesLogger(old)
    later.log_metrics({"loss": 0.5}, step=2)
    with (
        pytest.warns(UserWarning, match="belongs to a newer run by now"),
        pytest.warns(UserWarning, match="1 calls were lost"),
    ):
        later.close()
    assert [line["step"] for line in read_lines(old)] == [1]
    with pytest.raises(CheckpointError, match=r"newer run by now \(process 2 on b, since later\)"):
        manager.process(0.5, 1, {})
    with pytest.raises(RuntimeError, match="belongs to a newer run by now"):
        record_scores(old, test=0.5)
    assert not signs.shows_life(old)
    old.close()
    sessions = (read_record(old) or {})["sessions"]
    assert [session["state"] for session in sessions] == ["finished", "running"]


IN_A_CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", RUN]


def test_a_container_of_the_same_host_name() -> None:
    """A live run in another PID namespace is not taken for killed, nor a killed one for live."""
    if subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"]).returncode:
        pytest.skip("needs the right to make PID namespaces")
    quick = "from batteries._rundir import alive; alive.BEAT, alive.WATCH = 0.1, 1.5\n"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*IN_A_CONTAINER[:-1], quick + RUN], stdin=pipe, stdout=pipe, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "started\n"
        again = f"{quick}import batteries\nbatteries.start_run('runs')"
        command = [sys.executable, "-c", again]
        assert b"runs/001 is recorded by process " in warm.run(command, capture_output=True).stderr
        subprocess.run(["pkill", "-9", "-P", str(first.pid)], check=True)
    assert b"no sign of life for 1.5 s" in warm.run(command, capture_output=True).stderr
    assert last_session("runs/001")["state"] == "finished"


GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """With a program that starts a run, and a file of bytes, both committed."""
    (tmp_path / "train.py").write_text("from batteries import start_run\nstart_run('runs')\n")
    (tmp_path / "data").write_bytes(b"one\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*GIT, *command], cwd=tmp_path, check=True)
    return tmp_path


def git_of_a_run(repository: Path, run: str) -> dict[str, Any]:
    warm.run([sys.executable, "train.py"], cwd=repository, check=True, capture_output=True)
    return dict(last_session(repository / run)["git"])


@pytest.mark.parametrize(
    ("config", "data"),
    [
        ("diff.noprefix", b"two\n"),
        ("diff.mnemonicPrefix", "zwölf\n".encode("latin-1")),
        ("core.quotePath", bytes(range(256))),
    ],
)
def test_git(repository: Path, config: str, data: bytes) -> None:
    """The commit is recorded, and what was changed since is a patch that applies."""
    subprocess.run([*GIT, "config", config, "true"], cwd=repository, check=True)
    (repository / "data").write_bytes(data)
    about = git_of_a_run(repository, "runs/001")
    head = subprocess.run([*GIT, "rev-parse", "HEAD"], cwd=repository, capture_output=True).stdout
    assert (about["commit"], about["dirty"]) == (head.decode().strip(), True)
    subprocess.run([*GIT, "checkout", "-q", "data"], cwd=repository, check=True)
    subprocess.run([*GIT, "apply", f"runs/001/{about['diff']}"], cwd=repository, check=True)
    assert (repository / "data").read_bytes() == data


def test_runs_are_no_changes(repository: Path) -> None:
    """The directories of runs do not make a commit dirty; a new file beside them does."""
    git_of_a_run(repository, "runs/001")
    assert not git_of_a_run(repository, "runs/002")["dirty"]
    (repository / "new.py").touch()
    assert git_of_a_run(repository, "runs/003")["untracked"] == ["new.py"]


def test_tracked_runs_are_no_changes(repository: Path) -> None:
    """Files of runs that are under version control are not in the diff, but other files are."""
    git_of_a_run(repository, "runs/001")
    subprocess.run([*GIT, "add", "-f", "runs"], cwd=repository, check=True)
    subprocess.run([*GIT, "commit", "-qm", "runs"], cwd=repository, check=True)
    (repository / "runs/001/run.json").write_bytes(b"{}")
    assert code(repository, repository / "runs/002")[1] == b""
    (repository / "train.py").write_bytes(b"")
    assert b"run.json" not in code(repository, repository / "runs/002")[1]
    assert b"train.py" in code(repository, repository / "runs/002")[1]


def test_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret of the environment is nowhere in the record, however it got there."""
    monkeypatch.setenv("WANDB_API_KEY", "c0ffee123456")
    monkeypatch.setattr(
        sys, "argv", ["train.py", "--uri", "https://me:c0ffee@host", "--token", "t0k3n"]
    )
    with start_run("runs", {"uri": "https://me:c0ffee123456@host", "note": "c0ffee123456"}) as run:
        text = (run.path / "run.json").read_text()
    assert "c0ffee" not in text
    assert "t0k3n" not in text
    assert '"WANDB_API_KEY": "***"' in text


def test_foreign_record() -> None:
    """A `run.json` of something else is named, and stays as it is."""
    Path("run.json").write_text(json.dumps(["not ours"]))
    with pytest.raises(
        ValueError, match=r"run\.json is not the record of a run: it is .*; expected dict"
    ):
        start_run(".")
    assert json.loads(Path("run.json").read_text()) == ["not ours"]


def record_on_each_rank(logdir: str) -> tuple[str, str]:
    with start_run(logdir) as run:
        return run.path.name, run.id


def test_ranks_record_once(tmp_path: Path) -> None:
    """All ranks have the same directory and id, and one session is recorded."""
    results = run_ranks(record_on_each_rank, str(tmp_path), world_size=3)
    assert len(set(results)) == 1
    record = read_record(tmp_path / "001")
    assert record is not None
    assert [session["world_size"] for session in record["sessions"]] == [3]


def test_threads_end() -> None:
    """A closed run leaves no thread, and closing twice changes nothing."""
    before = threading.active_count()
    run = start_run("runs")
    with pytest.raises(ValueError, match="state is 'done'; expected 'finished', 'stopped' or"):
        run.close("done")  # type: ignore[arg-type]
    run.close("failed", "no")
    run.close()
    assert last_session("runs/001")["state"] == "failed"
    while threading.active_count() > before:
        pass


# ---------------------------------------------------------------- torch's switches


class Strategies(Dataset[str]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> str:
        return str(torch.multiprocessing.get_sharing_strategy())  # type: ignore[no-untyped-call]


def test_switches_outlast_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed leaves the choice of cudnn's benchmark as it was made."""
    monkeypatch.setenv("BATTERIES_BACKENDS", "{}")
    for choice in (True, False):
        set_backends(cudnn_benchmark=choice)
        seed_all(42, deterministic=choice)
        assert torch.backends.cudnn.benchmark == choice


def test_warnings_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later processes ignore the warnings of all calls."""
    monkeypatch.setenv("BATTERIES_BACKENDS", "{}")
    with warnings.catch_warnings():
        set_backends(ignore_warnings=["first"])
        set_backends(ignore_warnings="second")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adopt_backends()
        warnings.warn("first", stacklevel=1)
        warnings.warn("second", stacklevel=1)
        with pytest.raises(UserWarning, match="sec"):
            warnings.warn("sec", stacklevel=1)


def test_switches_reach_torchs_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sharing strategy is that of the workers of torch's loader, too."""
    monkeypatch.setenv("BATTERIES_BACKENDS", "{}")
    set_backends(sharing_strategy="file_system")
    loader = torch.utils.data.DataLoader(
        Strategies(), num_workers=1, multiprocessing_context="spawn", worker_init_fn=seed_worker
    )
    try:
        assert list(loader) == [["file_system"]]
    finally:
        set_backends(sharing_strategy="file_descriptor")


@pytest.mark.parametrize("start", ["fork", sweep("spawn")])
def test_switches_reach_workers(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sharing strategy is that of the workers, however they are started."""
    monkeypatch.setenv("BATTERIES_BACKENDS", "{}")
    set_backends(sharing_strategy="file_system")
    loader = data.DataLoader(Strategies(), num_workers=1, multiprocessing_context=start)
    try:
        assert list(loader) == [["file_system"]]
    finally:
        set_backends(sharing_strategy="file_descriptor")


def test_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given is set, what is not stays, and an unknown strategy is named."""
    monkeypatch.setenv("BATTERIES_BACKENDS", "{}")
    set_backends(matmul_precision="high", anomaly_mode=True)
    set_backends(ignore_warnings=["known"])
    try:
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.is_anomaly_enabled()
        torch.set_float32_matmul_precision("highest")
        adopt_backends()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        set_backends(matmul_precision="highest", anomaly_mode=False)
    with pytest.raises(ValueError, match="matmul_precision is 'fast'; expected one of highest, "):
        set_backends(matmul_precision="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sharing_strategy is 'fast'; this system has file_"):
        set_backends(sharing_strategy="fast")  # type: ignore[arg-type]


def test_a_record_that_is_removed() -> None:
    """A run whose record was removed meanwhile says so at its end, and how it ended."""
    run = start_run("runs")
    shutil.rmtree("runs")
    Path("runs/001").mkdir(parents=True)  # as the next checkpoint does
    with pytest.raises(FileNotFoundError, match=r"not recorded \(finished\): its run.json was rem"):
        run.close()


def remove_while_it_is_recorded(error: type[Exception] | None) -> None:
    with start_run("runs"):
        shutil.rmtree("runs")
        if error is not None:
            raise error


def test_a_run_that_is_removed() -> None:
    """A run whose directory was removed says so at its end; after an error, as a warning."""
    with pytest.raises(FileNotFoundError, match=r"not recorded \(finished\): its run.json was rem"):
        remove_while_it_is_recorded(None)
    with (
        pytest.warns(UserWarning, match=r"not recorded \(failed\): its run.json was removed, or"),
        pytest.raises(KeyError),
    ):
        remove_while_it_is_recorded(KeyError)


@pytest.mark.parametrize(
    ("args", "warns"),
    [
        ({"lr": 0.1, "train": {"num_epochs": 20}}, True),
        ({"lr": 0.1, "train": {"num_epochs": 10}}, False),  # the same again
        ({"lr": 0.1, "train": {"num_epochs": 5}}, False),
        ({"lr": 0.2, "train": {"num_epochs": 20}}, False),  # another experiment
    ],
)
def test_a_finished_run_with_more_epochs(args: dict[str, Any], warns: bool) -> None:
    """A new run says so, and how to extend the finished one, which then goes on."""
    start_run("runs", {"lr": 0.1, "train": {"num_epochs": 10}}).close()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with start_run("runs", args) as run:
            assert run.path == Path("runs/002")
    assert [warning.filename for warning in told] == [__file__] * warns
    if warns:
        text = str(told[0].message)
        assert text.startswith("runs/001 has finished (train.num_epochs was 10, is 20), and runs")
        assert "start_run('runs/001')" in text
        with start_run("runs/001", args) as run:
            assert run.resumed
    with start_run("runs", {"lr": 0.1, "train": {"num_epochs": 30}}, new=True):
        pass


def test_words_of_a_program_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchrun's own -u for Python is left out of the command, and a -u of the program stays."""
    for name, value in (
        ("TORCHELASTIC_RUN_ID", "1"),
        ("LOCAL_WORLD_SIZE", "2"),
        ("WORLD_SIZE", "2"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["train.py", "-u", "ann"])
    monkeypatch.setattr("sys.orig_argv", [sys.executable, "-u", "train.py", "-u", "ann"])
    assert _launch()["launch"][-3:] == ["train.py", "-u", "ann"]
    assert _launch()["launch"][-4] == "--nnodes=1"
