"""What a program runs on and with: versions, machine, code. Secrets are masked."""

from __future__ import annotations

import dataclasses
import glob
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MASK = "***"
_SECRET = re.compile(
    # Whole words: a tokenizer, max_tokens and an author are none.
    r"(?i)(?<![a-z])(?:auth|authorization|bearer|pass|passphrase|pwd|token)(?![a-z])"
    r"|secret|passw|credential|(?:api|access|private|wandb)[_-]?key"
)
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")  # in apiKey
_NO_SECRETS = ("PWD", "SSH_AUTH_SOCK")  # variables with such names
_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+(?=@)")  # https://user:password@host
_PLACE = re.compile(r" at 0x[0-9a-fA-F]+")  # in the memory of one process
_TOLD = (  # beginnings of the variables that are recorded
    *("CUDA_", "GLOO_", "MASTER_", "MKL_", "MLFLOW_", "NCCL_", "NVIDIA_", "OMP_", "PYTHON"),
    *("PYTORCH_", "SLURM_", "TORCH", "WANDB_", "WORLD_SIZE"),
)
_PATCH = (  # one that applies, however git is configured
    *("diff", "HEAD", "--binary", "-U3", "--src-prefix=a/", "--dst-prefix=b/"),
    *("--no-color", "--no-ext-diff", "--no-textconv"),
)
_DIFF = 2**22  # bytes that are kept of a diff


def environment() -> dict[str, Any]:
    """What a bug report needs, as plain values.

    >>> sorted(environment())
    ['cpu', 'driver', 'gpus', 'host', 'memory', 'packages', 'platform', 'python', 'variables']
    """
    gpus = _gpus()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": f"{_cpu()} ({os.cpu_count()} cores)",
        "memory": _memory(),
        "gpus": [name for name, _ in gpus],
        "driver": gpus[0][1] if gpus else None,
        "packages": packages(),
        "variables": {
            name: value for name, value in masked(os.environ).items() if name.startswith(_TOLD)
        },
    }


def packages() -> dict[str, str]:
    """The installed distributions and their versions.

    >>> "numpy" in packages()
    True
    """
    found = ((each.name, each.version) for each in importlib.metadata.distributions())
    return dict(sorted((name.lower(), version) for name, version in found if name))


def code(
    directory: str | os.PathLike[str], run: Path | None = None
) -> tuple[dict[str, Any] | None, bytes]:
    """The git commit of a directory, and what was changed since as a patch; (None, b"") without.

    >>> code("/")
    (None, b'')

    Args:
        run: Where a run is recorded, with others beside it perhaps: no change of the code.
    """
    top = _output("git", "-C", str(directory), "rev-parse", "--show-toplevel")
    commit = _output("git", "-C", str(directory), "rev-parse", "HEAD")
    if not top or not commit:
        return None, b""
    root = os.fsdecode(top.removesuffix(b"\n"))
    git = ("git", "-C", root)
    besides = () if run is None else _besides(Path(os.path.relpath(run.resolve(), root)))
    status = _output(*git, "status", "--porcelain", "--", ".", *besides)
    changes = status.decode(errors="replace").splitlines()
    diff = _output(*git, *_PATCH)
    if len(diff) > _DIFF:
        diff = diff[:_DIFF] + f"\n[{len(diff) - _DIFF:,} bytes more]\n".encode()
    about = {
        "commit": commit.decode().strip(),
        "branch": _output(*git, "rev-parse", "--abbrev-ref", "HEAD").decode().strip(),
        "dirty": bool(changes),
        "untracked": [line[3:] for line in changes if line.startswith("??")][:100],
    }
    text = masked_text(diff.decode(errors="surrogateescape"))  # whatever the encodings
    return about, text.encode(errors="surrogateescape")


def _besides(run: Path) -> list[str]:
    """What tells git to leave out a directory, and if it is numbered the others."""
    if run.parts[:1] == ("..",):
        return []
    if run.name.isdecimal():
        numbered = Path(glob.escape(str(run.parent)), "[0-9][0-9][0-9]*", "**")
        return [f":(top,exclude,glob){numbered.as_posix()}"]
    return [f":(top,exclude){run.as_posix()}"]


def program_directory() -> Path:
    """Where the running program lies, or the current directory.

    >>> program_directory().is_dir()
    True
    """
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(script).resolve().parent if script else Path.cwd()


# ---------------------------------------------------------------- secrets


def masked(values: Any) -> dict[str, Any]:
    """Named values, without those that look like secrets by their name or what they are.

    >>> masked({"lr": 0.1, "api_key": "abc", "uri": "https://me:word@host"})
    {'lr': 0.1, 'api_key': '***', 'uri': 'https://***@host'}

    Values of the environment whose names look like secrets are masked wherever they appear.

    Args:
        values: A mapping, a dataclass, an `argparse.Namespace` or another object's attributes, with
            any of them inside; what JSON does not know is its `repr`.
    """
    return {str(name): _masked(value, str(name)) for name, value in _named(values).items()}


def _named(values: Any) -> Mapping[Any, Any]:
    if isinstance(values, Mapping):
        return values
    if dataclasses.is_dataclass(values):
        return {field.name: getattr(values, field.name) for field in dataclasses.fields(values)}
    return dict(getattr(values, "__dict__", values))


def masked_command(words: list[str]) -> list[str]:
    """The same for a command line.

    >>> masked_command(["train.py", "--lr=0.1", "--api-key=abc", "--token", "-abc", "--max-tokens"])
    ['train.py', '--lr=0.1', '--api-key=***', '--token', '***', '--max-tokens']
    """
    found: list[str] = []
    secret = False
    for word in words:
        name, equals, _ = word.partition("=")
        if secret and not word.startswith("--"):
            found.append(MASK)
        elif equals and _is_secret(name):
            found.append(f"{name}={MASK}")
        else:
            found.append(masked_text(word))
        secret = word.startswith("-") and not equals and _is_secret(word)
    return found


def masked_text(text: str) -> str:
    """A text without the environment's secrets, and without names and passwords in addresses.

    >>> masked_text("401 from https://me:word@host")
    '401 from https://***@host'
    """
    for name, value in os.environ.items():
        if len(value) >= 6 and value in text and name not in _NO_SECRETS and _is_secret(name):
            text = text.replace(value, MASK)
    return _IN_ADDRESS.sub(MASK, text)


def _is_secret(name: str) -> bool:
    return bool(_SECRET.search(_WORD.sub("_", name)))


def _masked(value: Any, name: str) -> Any:
    is_object = dataclasses.is_dataclass(value) and not isinstance(value, type)
    if is_object or isinstance(value, Mapping | Namespace | SimpleNamespace):
        return masked(value)
    if isinstance(value, list | tuple | set | frozenset):
        found = [_masked(each, name) for each in value]
        # The order of a set is another one in each process.
        return found if isinstance(value, list | tuple) else sorted(found, key=str)
    if value is None or isinstance(value, bool | float):
        return value
    if _is_secret(name) and value not in ("", b""):
        return MASK
    if isinstance(value, int):
        return value
    return masked_text(value if isinstance(value, str) else _PLACE.sub("", repr(value)))


# ---------------------------------------------------------------- the machine


def _output(*command: str) -> bytes:
    """What a command prints; nothing where it fails or is not there."""
    try:
        return subprocess.run(command, capture_output=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return b""


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    name = re.search(r"model name\s*:\s*(.+)", text)
    return name[1] if name else platform.processor() or platform.machine()


def _memory() -> str | None:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def _gpus() -> list[tuple[str, str]]:
    """Names and drivers, without a context on each."""
    query = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    lines = _output(*query).decode().splitlines()
    pairs = (line.rpartition(", ") for line in lines)
    return [(name, driver) for name, _, driver in pairs]
