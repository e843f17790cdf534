"""What a program runs on and with: versions, machine, code. Secrets are masked."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MASK = "***"
_SECRET = re.compile(r"(?i)token|secret|passw|api_?-?key|access_?-?key|private_?-?key|credential")
_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+(?=@)")  # https://user:password@host
_TOLD = (  # beginnings of the variables that are recorded
    *("CUDA_", "GLOO_", "MASTER_", "MKL_", "MLFLOW_", "NCCL_", "NVIDIA_", "OMP_", "PYTHON"),
    *("PYTORCH_", "SLURM_", "TORCH", "WANDB_", "WORLD_SIZE"),
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
            name: value
            for name, value in masked(dict(os.environ)).items()
            if name.startswith(_TOLD)
        },
    }


def packages() -> dict[str, str]:
    """The installed distributions and their versions.

    >>> "numpy" in packages()
    True
    """
    found = ((each.name, each.version) for each in importlib.metadata.distributions())
    return dict(sorted((name.lower(), version) for name, version in found if name))


def code(directory: str | os.PathLike[str]) -> tuple[dict[str, Any] | None, bytes]:
    """The git commit of a directory, and what was changed since as a diff; (None, b"") without.

    >>> code("/")
    (None, b'')
    """
    top = _output("git", "-C", str(directory), "rev-parse", "--show-toplevel")
    commit = _output("git", "-C", str(directory), "rev-parse", "HEAD")
    if not top or not commit:
        return None, b""
    git = ("git", "-C", top.decode().strip())
    status = _output(*git, "status", "--porcelain").decode(errors="replace").splitlines()
    diff = _output(*git, "diff", "HEAD", "--no-color", "--no-ext-diff")
    if len(diff) > _DIFF:
        diff = diff[:_DIFF] + f"\n[{len(diff) - _DIFF:,} bytes more]\n".encode()
    about = {
        "commit": commit.decode().strip(),
        "branch": _output(*git, "rev-parse", "--abbrev-ref", "HEAD").decode().strip(),
        "dirty": bool(status),
        "untracked": [line[3:] for line in status if line.startswith("??")][:100],
    }
    return about, _without_secrets(diff.decode(errors="replace")).encode()


def program_directory() -> Path:
    """Where the running program lies, or the current directory.

    >>> program_directory().is_dir()
    True
    """
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(script).resolve().parent if script else Path.cwd()


# ---------------------------------------------------------------- secrets


def masked(values: Mapping[str, Any]) -> dict[str, Any]:
    """Named values, without those that look like secrets by their name or what they are.

    >>> masked({"lr": 0.1, "api_key": "abc", "uri": "https://me:word@host"})
    {'lr': 0.1, 'api_key': '***', 'uri': 'https://***@host'}

    Values of the environment whose names look like secrets are masked wherever they appear.
    """
    return {name: _masked(value, name) for name, value in values.items()}


def masked_command(words: list[str]) -> list[str]:
    """The same for a command line.

    >>> masked_command(["train.py", "--lr=0.1", "--api-key=abc", "--token", "abc"])
    ['train.py', '--lr=0.1', '--api-key=***', '--token', '***']
    """
    found: list[str] = []
    secret = False
    for word in words:
        name, equals, _ = word.partition("=")
        if secret and not word.startswith("-"):
            found.append(MASK)
        elif equals and _SECRET.search(name):
            found.append(f"{name}={MASK}")
        else:
            found.append(_without_secrets(word))
        secret = word.startswith("-") and not equals and bool(_SECRET.search(word))
    return found


def _masked(value: Any, name: str = "") -> Any:
    if isinstance(value, Mapping):
        return masked(value)
    if isinstance(value, list | tuple):
        return [_masked(each, name) for each in value]
    if _SECRET.search(name) and isinstance(value, str | bytes) and value:
        return MASK
    return _without_secrets(value) if isinstance(value, str) else value


def _without_secrets(text: str) -> str:
    for name, value in os.environ.items():
        if len(value) >= 6 and _SECRET.search(name) and value in text:
            text = text.replace(value, MASK)
    return _IN_ADDRESS.sub(MASK, text)


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
