"""The machine, the versions and the code of a program, with secrets masked."""

from __future__ import annotations

import glob
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from batteries._masking import masked, masked_patch, masked_text

_TOLD = (  # prefixes of the environment variables that are recorded
    *("CUDA_", "GLOO_", "MASTER_", "MKL_", "MLFLOW_", "NCCL_", "NVIDIA_", "OMP_", "PYTHON"),
    *("PYTORCH_", "SLURM_", "TORCH", "WANDB_", "WORLD_SIZE"),
)
_PATCH = (  # with these options, the patch applies under any configuration of git
    *("diff", "HEAD", "--binary", "-U3", "--src-prefix=a/", "--dst-prefix=b/"),
    *("--no-color", "--no-ext-diff", "--no-textconv"),
)
_DIFF = 2**22  # the most bytes of a diff


def environment() -> dict[str, Any]:
    """The facts for a bug report, as plain values."""
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
        "variables": masked({n: v for n, v in os.environ.items() if n.startswith(_TOLD)}),
    }


def packages() -> dict[str, str]:
    """The installed distributions and their versions."""
    found: dict[str, str] = {}
    for each in importlib.metadata.distributions():  # of two versions, the imported one is first
        text = each.read_text("METADATA") or each.read_text("PKG-INFO") or ""
        # `each.name` and `each.version` would parse long descriptions too, which takes 0.5 s.
        fields = dict(re.findall(r"^(Name|Version): *(.*)", text.partition("\n\n")[0], re.M))
        if len(fields) == 2:
            found.setdefault(fields["Name"].lower(), fields["Version"])
    return dict(sorted(found.items()))


def code(
    directory: str | os.PathLike[str], run: Path | None = None
) -> tuple[dict[str, Any] | None, bytes]:
    """The git commit of a directory, and the changes since then as a patch.

    Without git, or outside of a repository, it is (None, b"").

    Args:
        run: The directory of a run. Its files are no changes. If its name is a number, the files of
            the numbered runs beside it are no changes either.
    """
    top = git(directory, "rev-parse", "--show-toplevel")
    commit = git_text(directory, "rev-parse", "HEAD")
    if not top or not commit:
        return None, b""
    root = os.fsdecode(top.removesuffix(b"\n"))
    besides = () if run is None else _besides(Path(os.path.relpath(run.resolve(), root)))
    status = git(root, "status", "--porcelain", "--", ".", *besides) or b""
    changes = status.decode(errors="replace").splitlines()
    diff = git(root, *_PATCH, "--", ".", *besides) or b""
    if len(diff) > _DIFF:
        diff = diff[:_DIFF] + f"\n[{len(diff) - _DIFF:,} bytes more]\n".encode()
    about = {
        "commit": commit,
        "remote": masked_text(git_text(root, "remote", "get-url", "origin") or "") or None,
        "branch": git_text(root, "rev-parse", "--abbrev-ref", "HEAD") or "",
        "dirty": bool(changes),
        "untracked": [line[3:] for line in changes if line.startswith("??")][:100],
    }
    return about, masked_patch(diff)


def git(directory: str | os.PathLike[str], *words: str) -> bytes | None:
    """The output of git in a directory; None if it fails. It never starts a file system monitor."""
    return _output("git", "-C", str(directory), "-c", "core.fsmonitor=false", *words)


def git_text(directory: str | os.PathLike[str], *words: str) -> str | None:
    output = git(directory, *words)
    return None if output is None else output.decode(errors="replace").strip()


def _besides(run: Path) -> list[str]:
    """Arguments with which git leaves out a run; for a numbered run, also the runs beside it."""
    if run.parts[:1] == ("..",):
        return []
    if run.name.isdecimal():
        numbered = Path(glob.escape(str(run.parent)), "[0-9][0-9][0-9]*", "**")
        return [f":(top,exclude,glob){numbered.as_posix()}"]
    return [f":(top,exclude){run.as_posix()}"]


def program_directory() -> Path:
    """The directory of the running program, or the current directory."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(script).resolve().parent if script else Path.cwd()


# ---------------------------------------------------------------- the machine


def _output(*command: str) -> bytes | None:
    """The output of a command; None if it fails or does not exist."""
    try:
        return subprocess.run(command, capture_output=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


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
    """Names and drivers of the GPUs, without creating a CUDA context."""
    query = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    lines = (_output(*query) or b"").decode().splitlines()
    pairs = (line.rpartition(", ") for line in lines)
    return [(name, driver) for name, _, driver in pairs]
