from __future__ import annotations

import dataclasses
import json
import random
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import pydantic
import pytest
import torch
from sweeps import sweep

from batteries import start_run
from batteries._masking import masked, masked_patch, masked_text
from batteries._rundir.record import read_record, write_record

NAMES = ["hf_token", "API_KEY", "dbPassword", "client_secret", "auth", "aws_secret_access_key"]


@dataclasses.dataclass
class Data:
    token: str
    lr: float = 0.1


class Settings(pydantic.BaseModel):
    hf_token: str


@attrs.define
class Attributes:
    password: str


class Named(NamedTuple):
    api_key: str


class Shown:
    def __init__(self, secret: str) -> None:
        self.secret = secret

    def __repr__(self) -> str:
        return f"Shown(url='x', inner=Inner(access_token={self.secret!r}))"


def word(rng: random.Random, length: int = 14, others: str = "") -> str:
    letters = string.ascii_letters + string.digits + others
    return rng.choice("abc") + str(rng.randrange(10)) + "".join(rng.choices(letters, k=length))


Kind = Callable[[random.Random], tuple[Any, str]]  # a value, and the secret in it
TEXTS: dict[str, Callable[[str, str], str]] = {
    "json": lambda name, s: json.dumps({"lr": 0.1, name: s}),
    "json in json": lambda name, s: json.dumps({"a": json.dumps({"b": [{name: s}]})}),
    "json in a text": lambda name, s: f"bad config {json.dumps({name: s})} at line 3",
    "a dict": lambda name, s: f"got { ({'lr': 1, name: s}) }",
    "query": lambda name, s: f"https://host:8080/path?lr=1&{name}={s}&x=1",
    "header": lambda _, s: f"Authorization: Bearer {s}",
    "bearer": lambda _, s: f"sent 'Bearer {s}' to host",
    "source": lambda name, s: f"{name} = '{s}'  # mine",
    "typed source": lambda name, s: f'{name}: str = "{s}"',
    "environ": lambda name, s: f'os.environ["{name}"] = "{s}"',
    "call": lambda name, s: f'login(1, {name}="{s}", lr=0.1)',
    "option": lambda name, s: f"python train.py --{name} {s} --lr 1",
    "yaml": lambda name, s: f"{name}: {s}",
    "shell": lambda name, s: f"export {name.upper()}={s}",
    "address": lambda _, s: f"postgresql://user:{s}@host:5432/db",
    "an @ in it": lambda _, s: f"postgresql://user:a@{s}@host/db",
    "no scheme": lambda _, s: f"user:p@{s}@host",
    "another scheme": lambda _, s: f"curl -H 'Authorization: token {s}' https://host",
    "curl": lambda _, s: f"curl -u me:{s} https://host",
    "odbc": lambda _, s: f"Driver=x;Server=y;UID=me;PWD={s};Port=1",
    "element": lambda name, s: f"<{name}>{s}</{name}>",
    "wrapped": lambda name, s: f"Settings({name}=SecretStr('{s}'), lr=1)",
    "slack": lambda _, s: f"post to https://hooks.slack.com/services/T01/B01/{s}",
    "telegram": lambda _, s: f"https://api.telegram.org/bot1234567:{s}/sendMessage",
    "hugging face": lambda _, s: f"used hf_{s}{s} here",
    "github": lambda _, s: f"x = 'ghp_{s}{s}'",
    "private": lambda _, s: f"-----BEGIN RSA PRIVATE KEY-----\n{s}\n-----END RSA PRIVATE KEY-----",
}
OBJECTS: list[Callable[[str], Any]] = [
    lambda s: Data(s),
    lambda s: Settings(hf_token=s),
    lambda s: Attributes(s),
    lambda s: Named(s),
    lambda s: Shown(s),
    lambda s: {"credentials": {"value": s}},
    lambda s: [("password", s)],
    lambda s: [["password", s], ["lr", "0.1"]],
    lambda s: ["--api-key", s],
    lambda s: {"passwords": [s, s]},
    lambda s: {f"https://me:{s}@host": 1},
]


def cases(rng: random.Random, times: int) -> list[tuple[Any, str]]:
    """Values with a secret in each, and that secret."""
    found: list[tuple[Any, str]] = []
    for make in TEXTS.values():
        for _ in range(times):
            secret = word(rng)
            found.append((make(rng.choice(NAMES), secret), secret))
    return found


@pytest.mark.parametrize("seed", [0, sweep(1), sweep(2)])
def test_no_secret_in_the_record(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind of secret, sent through each channel of the record, is not in any of its files."""
    rng = random.Random(seed)
    channels = {name: cases(rng, 3) for name in ("args", "argv", "env", "diff", "error")}
    secrets = {s: f"{name}: {v}" for name, found in channels.items() for v, s in found}
    objects = []
    for make in OBJECTS:
        secret = word(rng)
        objects.append(make(secret))
        secrets[secret] = f"args: {objects[-1]!r}"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "train.py").write_text("lr = 1\n")
    remote = word(rng)
    secrets[remote] = "remote"
    for command in (
        *(["init", "-q"], ["add", "."], ["commit", "-qm", "one"]),
        ["remote", "add", "origin", f"https://me:p@{remote}@host/repo.git"],
    ):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    (tmp_path / "train.py").write_text("\n".join(str(v) for v, _ in channels["diff"]))
    program = sys.modules["__main__"]
    monkeypatch.setattr(program, "__file__", str(tmp_path / "train.py"), raising=False)
    for number, (value, _) in enumerate(channels["env"]):
        monkeypatch.setenv(f"SLURM_{number}", value)
    monkeypatch.setattr(sys, "argv", ["train.py", *(v for v, _ in channels["argv"])])
    args = {"values": [v for v, _ in channels["args"]], "objects": objects}
    args |= {f"v{n}": v for n, (v, _) in enumerate(channels["args"])}
    error = "\n".join(v for v, _ in channels["error"])
    with pytest.raises(ValueError, match="json"), start_run("runs", args) as run:
        raise ValueError("json " + error)
    text = "".join(path.read_text() for path in run.path.iterdir())
    assert [where for secret, where in secrets.items() if secret in text] == []
    assert "@host/repo.git" in text
    record = read_record(run.path)
    assert record is not None
    write_record(run.path, record)
    assert read_record(run.path) == record


def test_a_secret_by_name_is_one_everywhere() -> None:
    """A value that an argument's name makes a secret is masked in errors too."""
    with pytest.raises(ValueError, match="401"), start_run("runs", {"api_key": "c0ffee99"}):
        raise ValueError("401 for c0ffee99")
    assert "c0ffee99" not in Path("runs/001/run.json").read_text()


ORDINARY = [
    "for token in tokens: token = words[0]",
    "pad_token = '[PAD]'; eos_token=\"</s>\"",
    "def login(password: str, token: str | None = None) -> None:",
    "parser.add_argument('--token', help='of the hub')",
    "lr = 0.1; url = 'http://host:80/a/b@c'; x = a @ b; f = lambda x:x@w",
    "image: repo:tag@sha256:0123abcd",
    "self.token = token; f(token=token, password=args.password)",
    "if token == 'word': pass",
    "token = fetch('hub1_token'); self.token = Token(kind='word_1')",
    "docker run -u 1000:1000 image; git push -u origin:main",
    "the bearer of news; Basic training",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_source_stays(text: str) -> None:
    """Source without secrets is the same, so that its patch applies."""
    assert masked_patch(f"+{text}\n".encode()) == f"+{text}\n".encode()


def test_masks_stay() -> None:
    """What was masked once is the same when it is masked again."""
    for value, _ in cases(random.Random(7), 2):
        once = masked_text(value)
        assert masked_text(once) == once


class Stubborn:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_arguments_without_end() -> None:
    """Cycles, long lists, deep ones and reprs that raise end no run; the record says so."""
    cycle: dict[str, Any] = {"lr": 0.1, "stubborn": Stubborn()}
    cycle["self"] = cycle
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    args = cycle | {"many": list(range(2_000_000)), "deep": deep, "text": "x" * 10**7}
    args |= {"wide": [[0] * 900] * 900, "nan": float("nan"), "t": torch.tensor(2), 1: "a", "1": "b"}
    with start_run("runs", args) as run:
        text = (run.path / "run.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)["sessions"][0]["args"]
    assert found["self"]["self"] == "... (a cycle)"
    assert found["many"][-1] == "... (1,999,000 more)"
    assert found["stubborn"] == "<Stubborn, whose repr raises RuntimeError>"
    assert (found["nan"], found["1"], found["1 (2)"]) == ("nan", "a", "b")
    assert len(text) < 2_000_000


def test_secret_arrays() -> None:
    """An array or a column under a secret's name is masked, and does not end the run."""
    import numpy as np

    pd: Any = pytest.importorskip("pandas")
    for value in (np.arange(3), pd.Series([1, 2]), torch.arange(3)):
        assert masked({"token": value}) == {"token": "***"}


def test_numbers_stay_numbers() -> None:
    """numpy's numbers are numbers, and truth is truth."""
    import numpy as np

    assert masked({"n": np.int64(3), "x": np.float32(0.5), "b": np.bool_(True)}) == {
        "n": 3,
        "x": 0.5,
        "b": True,
    }
