"""The examples as their users run them: the commands of their READMEs, on real data."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import warm
from ranks import run_ranks
from sklearn.datasets import load_digits
from sweeps import sweep
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from batteries import AverageMeter, PreemptionGuard, distribute, distributed, unwrap
from batteries._rundir.record import read_record, write_record

ROOT = Path(__file__).parents[1]
NAMES = ("whole", "broken")
EXAMPLES = sorted(  # of digits; the others have files of tests of their own
    path.parent.name
    for path in ROOT.glob("examples/*/datasets.py")
    if "load_digits" in path.read_text()
)
SINGLE = [name for name in EXAMPLES if name not in ("kfold", "submission")]  # one model each
# Since Python 3.12 a fork (of DataLoader workers) warns where there are threads (of torch).
WARNINGS = "error,ignore:This process:DeprecationWarning"
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": WARNINGS}
ENV["CUDA_VISIBLE_DEVICES"] = "-1"  # two processes share no GPU
ENV["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{ENV['PATH']}"


def readme_command(example: str) -> list[str]:
    text = (ROOT / "examples" / example / "README.md").read_text()
    [command] = re.findall(r"```bash\n(.*?)\n```", text)
    program, *words = shlex.split(command.replace("examples/", f"{ROOT}/examples/"))
    return warm.torchrun(*words) if program == "torchrun" else [sys.executable, *words]


TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def run(
    command: list[str], *, fails: bool = False, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**ENV, **(env or {})}
    start = subprocess.run if command[: len(TORCHRUN)] == TORCHRUN else warm.run
    result = start(command, env=environment, capture_output=True, text=True, timeout=500)
    print(result.stdout, result.stderr)
    assert (result.returncode != 0) == fails
    return result


@pytest.mark.parametrize("example", [name if name == "ddp" else sweep(name) for name in SINGLE])
def test_readme_command(example: str) -> None:
    """The README's command, with fewer epochs, leaves exactly the files that it lists."""
    run_and_look(example, "--num-epochs=3", score=0.8)


def run_and_look(example: str, *words: str, score: float) -> None:
    result = run([*readme_command(example), *words])
    scores = re.search(r"test accuracy (\S+), validation (\S+), difference (\S+)", result.stderr)
    assert scores
    test, valid, difference = map(float, scores.groups())
    assert test >= score
    assert difference == pytest.approx(test - valid, abs=1.1e-4)
    for logdir in Path("runs", example, "001").rglob("metrics.json"):
        files = sorted(path.name for path in logdir.parent.iterdir())
        assert [name for name in files if not name.startswith("exp_")] == [
            "best.pth", "last.pth", "metrics.json"
        ]  # fmt: skip
        assert len(files) == 3 + 3
        memory = json.loads(logdir.read_text())
        best = max(row["accuracy"] for row in memory["values"])
        if logdir.parent.name != "train":  # the last stage's best is what is tested
            assert valid == pytest.approx(best, abs=5e-5)
        assert torch.load(logdir.parent / "best.pth")["metrics"]["valid"]["accuracy"] == best
    epochs = re.findall(r"epoch +\d+: train loss", result.stderr)
    assert len(epochs) == sum(
        len(json.loads(path.read_text())["values"]) for path in Path("runs").rglob("metrics.json")
    )  # one line an epoch: the log and the bars are rank 0's alone
    assert "\r" not in result.stderr
    assert_listed_commands_work(result.stdout.split(" has\n")[1])


def test_folds_on_different_machines() -> None:
    """A fold that another machine trained is the same, and all are put together from the disk."""
    command = [*readme_command("kfold"), "--num-epochs=1"]
    run_folds(command, score=0.5)
    here, there = Path("runs/kfold/001"), Path("elsewhere/kfold/001/fold_3")
    oof = (here / "oof.parquet").read_bytes()
    run([*command, "--fold=3", "--logdir=elsewhere"])
    for name in ("valid.parquet", "test.parquet", "fold.json"):
        assert (there / name).read_bytes() == (here / "fold_3" / name).read_bytes()
    (here / "oof.parquet").unlink()
    shutil.rmtree(here / "fold_3")
    end_early(here)
    assert "missing folds: 3" in run([*command, "--fold=2"]).stderr
    shutil.copytree(there, here / "fold_3")
    run(command)
    assert (here / "oof.parquet").read_bytes() == oof


def run_folds(command: list[str], score: float) -> None:
    whole = run(command)
    scores = re.findall(r"accuracy (?:of the mean of the folds )?(0\.\d+)", whole.stderr)
    assert min(map(float, scores[-2:])) >= score


def test_submission() -> None:
    """A submission is chosen out of fold, and a second run makes the same from what is there."""
    submit([*readme_command("submission"), "--num-epochs=3"], score=0.9)


def submit(command: list[str], score: float) -> None:
    result = run(command)
    chosen = re.search(r"best OOF score: (.*?); test accuracy (\S+), .*, OOF (\S+),", result.stderr)
    assert chosen
    assert float(chosen[2]) >= score
    root = Path("runs/submission/001")
    scores = json.loads((root / "table.json").read_text())
    assert len(scores) == 4 + 4 + 1
    assert float(chosen[3]) == pytest.approx(min(row["OOF"] for row in scores.values()), abs=5e-5)
    table = result.stdout.split("log loss  ")[1].splitlines()
    assert [line[:20].strip() for line in table[1:10]] == list(scores)
    rows = [line.split(",") for line in (root / "submission.csv").read_text().split()]
    assert rows[0] == ["id", "label"]
    assert len(rows) == 1 + math.ceil(0.2 * len(load_digits().target))
    swa = torch.load(root / "deep/fold_0/swa.pth")
    assert len(swa["averaged"]) == 3
    assert (root / "correlation.png").read_bytes().startswith(b"\x89PNG")
    before = (root / "submission.csv").read_bytes()
    (root / "large/fold_2/fold.json").unlink()
    end_early(root)
    other = run([*command, "--lr=1"], fails=True)
    assert "001 is not finished and has other arguments: lr was 0.003, is 1.0" in other.stderr
    again = run(command)
    assert "fold 1, epoch" not in again.stderr
    assert (root / "submission.csv").read_bytes() == before
    assert json.loads((root / "table.json").read_text()) == scores


def assert_listed_commands_work(listing: str) -> None:
    *commands, curves = [line[19:] for line in listing.splitlines()]
    assert len(commands) == 4
    for command in commands:
        program, *words = shlex.split(command)
        if program == "cat":
            assert Path(*words).read_text()
        else:
            opened = warm.run([sys.executable, *words], capture_output=True, text=True)
            assert opened.stdout, opened.stderr
    assert list(Path(shlex.split(curves)[-1]).rglob("events.out.tfevents.*"))


def train_with_example(example: str, micro_batches: list[Batch]) -> tuple[Tensor, int]:
    """The weights after an epoch of an example's own `train`, and how often ranks shared."""
    folder = ROOT / "examples" / example
    sys.path.insert(0, str(folder))
    program = runpy.run_path(str(folder / "experiment.py"))
    del sys.path[0]
    for name in ("datasets", "models"):
        del sys.modules[name]
    model = distribute(start_model(), "cpu")
    shared = 0

    def count(_, bucket):  # type: ignore[no-untyped-def]  # torch looks at the annotations
        nonlocal shared
        shared += 1
        return allreduce_hook(dist.distributed_c10d._get_default_group(), bucket)

    if isinstance(model, nn.parallel.DistributedDataParallel):
        model.register_comm_hook(None, count)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    args = argparse.Namespace(accumulation_steps=2, batch_size=8)
    mine = micro_batches[distributed.rank() :: distributed.world_size()]
    with PreemptionGuard() as guard:
        memory = AverageMeter(), guard
        program["train"](1, model, mine, optimizer, scheduler, *memory, torch.device("cpu"), args)
    return unwrap(model).state_dict()["weight"], shared


Batch = tuple[Tensor, Tensor]


def start_model() -> nn.Linear:
    model = nn.Linear(4, 3, bias=False)
    nn.init.constant_(model.weight, 0.5)
    return model


def make_micro_batches(number: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator))
        for _ in range(number)
    ]


def train_with_big_batches(windows: list[list[Batch]]) -> Tensor:
    model = start_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for window in windows:
        x, y = (torch.cat(parts) for parts in zip(*window, strict=True))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
    return model.weight.detach()


@pytest.mark.parametrize("example", SINGLE)
@pytest.mark.parametrize("steps", [1, 5, 6])
def test_gradients_are_those_of_the_big_batch(example: str, steps: int) -> None:
    """Windows of two micro-batches, the last one shorter or alone, train as big batches do."""
    micro_batches = make_micro_batches(steps)
    weight, _ = train_with_example(example, micro_batches)
    windows = [micro_batches[start : start + 2] for start in range(0, steps, 2)]
    torch.testing.assert_close(weight, train_with_big_batches(windows))


def test_gradients_of_two_ranks() -> None:
    """Two ranks train as one with the big batch, and share gradients once a window."""
    micro_batches = make_micro_batches(10)
    results = run_ranks(train_with_example, "ddp", micro_batches)
    windows = [micro_batches[start : start + 4] for start in range(0, 10, 4)]
    for weight, shared in results:
        torch.testing.assert_close(weight, train_with_big_batches(windows))
        assert shared == 3


@pytest.mark.gpu
def test_on_all_gpus() -> None:
    """The demo reaches its score with a process for each GPU."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))
    script = f"{ROOT}/examples/ddp/experiment.py"
    # As many steps with any number of GPUs: with 8 times 32 images the score is 0.967.
    command = [*TORCHRUN, "--nproc-per-node=gpu", script, f"--batch-size={max(64 // count, 1)}"]
    # There the packages are not those of requirements.txt, and may warn of each other.
    result = run(command, env={"CUDA_VISIBLE_DEVICES": visible, "PYTHONWARNINGS": "default"})
    assert "x cuda" in result.stderr
    scores = re.search(r"test accuracy (\S+),", result.stderr)
    assert scores
    assert float(scores[1]) >= 0.96


A_RUN = [sys.executable, "copy/experiment.py", "--num-epochs=1"]


@pytest.fixture(scope="session")
def run_there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an example and what one run of it has left."""
    folder = tmp_path_factory.mktemp("a_run")
    shutil.copytree(ROOT / "examples/device", folder / "copy")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(A_RUN)
    return folder


@pytest.fixture
def _a_run(run_there: Path) -> None:
    shutil.copytree(run_there, Path.cwd(), dirs_exist_ok=True)


@pytest.mark.usefixtures("_a_run")
def test_second_run() -> None:
    """A second run has a directory of its own and leaves the first as it was."""
    before = {path: path.read_bytes() for path in Path("runs/device/001").rglob("*.*")}
    assert "runs/device/002 has" in run(A_RUN).stdout
    assert {path: path.read_bytes() for path in Path("runs/device/001").rglob("*.*")} == before


def stop_at(
    line: str, number: signal.Signals, command: list[str], group: bool = False
) -> tuple[int, str]:
    """Signal a run that logs a line, or all its processes, as Ctrl-C does: how it ended."""
    start = subprocess.Popen if command[: len(TORCHRUN)] == TORCHRUN else warm.Popen
    process = start(command, env=ENV, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr
    log = ""
    for logged in process.stderr:
        log += logged
        if line in logged:
            os.killpg(process.pid, number) if group else process.send_signal(number)
            break
    log += process.communicate(timeout=120)[1]  # ends when all its processes closed their end
    print(log)
    assert process.returncode != 0
    return process.returncode, log


def assert_same_checkpoints(first: Path, second: Path) -> None:
    assert (first / "metrics.json").read_text() == (second / "metrics.json").read_text()
    for name in ("best.pth", "last.pth"):
        expected, found = torch.load(first / name), torch.load(second / name)
        for key in ("stage", "epoch", "metrics", "scheduler_state_dict"):
            assert found[key] == expected[key]
        tensors = [
            (checkpoint["model_state_dict"], checkpoint["optimizer_state_dict"]["state"])
            for checkpoint in (found, expected)
        ]
        torch.testing.assert_close(*tensors, rtol=0, atol=0)


IN_AN_EPOCH = r"resumed after epoch \d+ and [1-9]\d* more images"


@pytest.mark.sweep
def test_kill_and_continue() -> None:
    """Killed, then interrupted in an epoch, a run ends as an undisturbed one, bit for bit."""
    command = [sys.executable, f"{ROOT}/examples/device/experiment.py", "--num-epochs=3"]
    run([*command, "--exp-name=whole"])
    broken = [*command, "--exp-name=broken", "--continue"]
    stop_at("train, epoch  2", signal.SIGKILL, broken)
    code, log = stop_at("finetune, epoch  1", signal.SIGINT, broken, group=True)
    assert code == PreemptionGuard.exit_code
    assert "train: resumed after epoch" in log
    assert re.search(r"finetune: stopped in epoch \d; use --continue to resume\n$", log)
    assert re.search(f"finetune: {IN_AN_EPOCH}", run(broken).stderr)
    for stage in ("train", "finetune"):
        assert_same_checkpoints(*(Path(f"runs/{n}/001/checkpoints/{stage}") for n in NAMES))


@pytest.mark.sweep
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ranks_continue(number: signal.Signals) -> None:
    """Two ranks stopped in an epoch, by SIGTERM or Ctrl-C, go on as two that never were."""
    script = f"{ROOT}/examples/ddp/experiment.py"
    command = warm.torchrun("--nproc-per-node=2", script, "--num-epochs=2")
    run([*command, "--exp-name=whole"])
    broken = [*command, "--exp-name=broken", "--continue"]
    _, log = stop_at(": train loss", number, broken, group=number == signal.SIGINT)
    assert "stopped in epoch" in log
    assert "SystemExit" not in log  # what torchrun says is enough
    assert re.search(IN_AN_EPOCH, run(broken).stderr)
    assert_same_checkpoints(*(Path(f"runs/{name}/001/checkpoints") for name in NAMES))


@pytest.mark.sweep
def test_torch_distributed_launch() -> None:
    """The older launcher works too, `--local-rank` and all."""
    script = f"{ROOT}/examples/ddp/experiment.py"
    python, *words = warm.torchrun("--nproc-per-node=2", script, "--num-epochs=1")
    words = [word.replace("distributed.run", "distributed.launch") for word in words]
    result = run([python, "-W", "ignore", *words])
    assert "runs/ddp/001 on 2 x" in result.stderr


def end_early(path: str | Path) -> None:
    """As if the run had been killed before its end."""
    record = read_record(path)
    assert record is not None
    record["sessions"][-1].update(state="running", pid=0)
    write_record(path, record)


@pytest.mark.usefixtures("_a_run")
def test_continue_with_other_data() -> None:
    """`--continue` with another fold would validate on what it trained on: it is refused."""
    end_early("runs/device/001")
    result = run([*A_RUN, "--continue", "--fold=1"], fails=True)
    assert (
        "runs/device/001 is not finished and has other arguments: fold was 0, is 1" in result.stderr
    )


def test_batches_larger_than_the_data() -> None:
    """A batch size over the number of images is an error, not a run that trains nothing."""
    command = [sys.executable, f"{ROOT}/examples/device/experiment.py", "--batch-size=2000"]
    assert "--batch-size 2000 is larger than the training set" in run(command, fails=True).stderr


@pytest.mark.usefixtures("_a_run")
def test_continue_with_another_model() -> None:
    """`--continue` with a model of another shape says which weights differ, and how."""
    end_early("runs/device/001")
    script = Path("copy/experiment.py")
    script.write_text(script.read_text().replace('"width": 32', '"width": 16'))
    result = run([*A_RUN, "--continue"], fails=True)
    assert (
        "CheckpointError: model_state_dict['features.0.0.weight'] is (32, 1, 3, 3)" in result.stderr
    )
    assert "but (16, 1, 3, 3) in the model" in result.stderr


@pytest.mark.parametrize("example", EXAMPLES)
def test_mnist_without_torchvision(example: str) -> None:
    """Where torchvision is missing, `--dataset mnist` names it and its install command."""
    Path("torchvision.py").write_text("raise ModuleNotFoundError('No module named torchvision')")
    script = f"{ROOT}/examples/{example}/experiment.py"
    here = {"PYTHONPATH": str(Path.cwd())}  # as if it were not installed, where it is
    result = run([sys.executable, script, "--dataset=mnist"], fails=True, env=here)
    assert "--dataset mnist needs torchvision (No module named torchvision)" in result.stderr
    assert "pip install torchvision, or use --dataset digits" in result.stderr


def test_log_directory_that_is_a_file() -> None:
    """`--logdir` that is a file is named at once."""
    Path("runs").touch()
    result = run([sys.executable, f"{ROOT}/examples/device/experiment.py"], fails=True)
    assert (
        "NotADirectoryError: cannot create the directory runs/device: runs is a file"
        in result.stderr
    )


def test_splits_never_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each fold, training, validation and test share no image, and together are all."""
    monkeypatch.syspath_prepend(ROOT / "examples/device")
    datasets = importlib.import_module("datasets")
    for fold in range(datasets.FOLDS):
        splits = datasets.load_splits("digits", fold)
        images = [[image.numpy().tobytes() for image in split.images] for split in splits]
        train, valid, test = map(set, images)
        assert not train & valid
        assert not train & test
        assert not valid & test
        assert sum(map(len, images)) == 1797


@pytest.mark.parametrize("name", ["datasets.py", "models.py"])
def test_shared_files_are_the_same(name: str) -> None:
    """The examples of digits differ in `experiment.py` alone: their diff shows that."""
    assert len({(ROOT / "examples" / example / name).read_text() for example in EXAMPLES}) == 1
