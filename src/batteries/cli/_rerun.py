"""`batteries rerun` and `resume`: start the program of a run again, with its code."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batteries._foreign import read_regular
from batteries._rundir.names import RESUMED
from batteries.cli._group import logdir_option, main, say

if TYPE_CHECKING:
    from batteries.scoreboard import RunInfo

_MASK = "***"  # replaces secrets in a record
_PLAIN = re.compile(  # settings of a repository that do not make git run programs
    r"(core\.(repositoryformatversion|filemode|bare|logallrefupdates|ignorecase|symlinks|autocrlf|eol"
    r"|precomposeunicode)|user\.(name|email)|remote\..*\.(url|fetch|gh-resolved)|init\.defaultbranch"
    r"|branch\..*\.(remote|merge|rebase|pushremote|vscode-merge-base)|rerere\.enabled|push\.default"
    r"|pull\.(rebase|ff))",
    re.IGNORECASE,
)


@dataclass
class _Plan:
    """How to start the program: the commands to run before it, its command, and its directory."""

    directory: str
    command: list[str]
    before: list[list[str]] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    obstacles: list[str] = field(default_factory=list)  # reasons not to run it


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--yes", is_flag=True, help="Run the command instead of printing it."),
        click.option(
            "--current-code",
            is_flag=True,
            help="Use the code as it is now, not the code of the run.",
        ),
        logdir_option,
        click.argument("words", nargs=-1, type=click.UNPROCESSED),
        click.argument("run", type=click.Path()),
    ):
        command = option(command)
    return command


@main.command()
@_options
def rerun(run: str, words: tuple[str, ...], logdir: str, current_code: bool, yes: bool) -> None:
    """Print the command of RUN, with its working directory and its code. With --yes, run it.

    If the code has changed since the run, the run's code is checked out into a git worktree: the
    commit, with the diff applied. WORDS after -- are added at the end of the command. argparse and
    click use the last value of an option.

    \b
    batteries rerun 13
    batteries rerun 13 --yes -- --lr 0.1
    """  # noqa: D301
    from batteries.scoreboard import find_run

    _carry_out(_planned(find_run(run, logdir), words, current_code), yes)


@main.command()
@_options
def resume(run: str, words: tuple[str, ...], logdir: str, current_code: bool, yes: bool) -> None:
    """Print the command that continues RUN. With --yes, run it.

    The code and WORDS are as for `batteries rerun`.

    \b
    batteries resume 13 --yes
    """  # noqa: D301
    from batteries.scoreboard import find_run

    found = find_run(run, logdir)
    plan = _planned(found, words, current_code)
    plan.variables[RESUMED] = str(found.path.resolve())
    if found.state == "running":
        plan.obstacles.append(f"{found.path} is running: stop it first")
    _carry_out(plan, yes)


def _carry_out(plan: _Plan, yes: bool) -> None:
    if yes and plan.obstacles:
        raise RuntimeError("; ".join(plan.obstacles))
    for note in [*plan.notes, *plan.obstacles]:
        say(f"# {note}", err=True)
    if not yes:
        for command in [*plan.before, ["cd", plan.directory]]:
            say(shlex.join(command))
        values = [f"{name}={shlex.quote(value)}" for name, value in plan.variables.items()]
        say(" ".join([*values, shlex.join(plan.command)]))
        return
    for command in plan.before:
        subprocess.run(command, check=True)
    variables = {**os.environ, **plan.variables}
    done = subprocess.run(plan.command, cwd=plan.directory, env=variables)
    raise SystemExit(done.returncode if done.returncode >= 0 else 128 - done.returncode)


def _planned(run: RunInfo, words: Sequence[str], current_code: bool) -> _Plan:
    session = run.session
    launch = session.get("launch") or session.get("command")
    if not isinstance(launch, list) or not all(isinstance(word, str) for word in launch):
        raise LookupError(f"{run.path} has no command: only runs of start_run have one")
    if len(launch) < 2 or any("ipykernel" in word for word in launch[:4]):
        raise LookupError(
            f"{run.path} was started in a notebook or a console, so it has no command: start it "
            "there again"
        )
    directory = session.get("directory") or os.fspath(Path.cwd())
    known = _with_secrets(launch, words)
    plan = _Plan(directory, [*known, *words])
    masked = [word for word in known if _MASK in word]
    if masked:
        plan.obstacles.append(
            f"secrets of the command were not recorded ({', '.join(masked)}): pass them again "
            "after --, such as: batteries rerun RUN -- --token ..."
        )
    if not session.get("directory"):
        plan.notes.append("the run's directory was not recorded: the current directory is used")
    if not Path(directory).is_dir():
        plan.obstacles.append(f"the run's directory {directory} does not exist here: make it first")
    if not Path(launch[0]).exists():
        plan.notes.append(f"{launch[0]} does not exist here: this Python is used")
        plan.command[0] = sys.executable
    _note_ranks(session, plan)
    if not current_code:
        _check_out(run, plan)
    return plan


def _with_secrets(launch: list[str], words: Sequence[str]) -> list[str]:
    """The command without the masked options that are passed again."""
    again = {word.partition("=")[0] for word in words}
    kept: list[str] = []
    for word in launch:
        name = word.partition("=")[0] if "=" in word else kept[-1] if kept else ""
        if _MASK in word and name in again:
            if "=" not in word:
                kept.pop()
        else:
            kept.append(word)
    return kept


def _note_ranks(session: dict[str, Any], plan: _Plan) -> None:
    nodes = next((word for word in plan.command if word.startswith("--nnodes=")), "--nnodes=1")
    if nodes != "--nnodes=1":
        plan.obstacles.append(
            f"the run used several hosts ({nodes}): start this command on each host, with "
            "--node-rank and --master-addr"
        )
    if "SLURM_PROCID" in (session.get("variables") or {}):
        plan.obstacles.append(
            f"Slurm started the run's {session.get('world_size')} ranks: start this command with "
            "srun"
        )


def _check_out(run: RunInfo, plan: _Plan) -> None:
    """Use the run's commit and diff in a worktree, unless the current code is the same."""
    from batteries._environment import git_text

    git, program = run.session.get("git") or {}, run.session.get("program")
    commit = str(git.get("commit"))
    if not program or not re.fullmatch("[0-9a-f]{40,64}", commit):
        plan.notes.append("the run's code was not in a git repository: the current code is used")
        return
    top = git_text(Path(program).parent, "rev-parse", "--show-toplevel")
    if top and Path(top).resolve().is_relative_to(run.path.resolve()):
        raise ValueError(
            f"the program is in a git repository inside of {run.path}, which is not trusted: add "
            "--current-code to use the code as it is now"
        )
    if top is not None and not _is_trusted(Path(top)):
        raise ValueError(
            f"{top} has submodules, or a configuration with which git may run programs: "
            f"cd {top} first if you trust it, or add --current-code"
        )
    if top is None or git_text(Path(top), "cat-file", "-e", f"{commit}^{{commit}}") is None:
        plan.notes.append(
            f"commit {commit[:8]} is not in this repository: the current code is used"
        )
        return
    diff = read_regular(run.diff, inside=run.path) if run.diff and run.diff.exists() else b""
    if _is_at(Path(program).parent, run.path, commit, diff):
        return
    if diff.endswith(b" bytes more]\n"):
        raise ValueError(
            f"{run.diff} was too long and is incomplete: add --current-code to use the code as it "
            "is now"
        )
    known = hashlib.sha256(diff).hexdigest()[:8]
    above = Path(top, git_text(Path(top), "rev-parse", "--git-common-dir") or ".git")
    worktree = above / "batteries" / f"{commit[:12]}-{known}"
    if not worktree.exists():
        quiet = ["git", "-C", top, "worktree", "add", "--quiet", "--detach"]
        plan.before.append([*quiet, str(worktree), commit])
        if diff:
            apply = ["git", "-C", str(worktree), "apply", "--whitespace=nowarn"]
            plan.before.append([*apply, str(run.diff and run.diff.resolve())])
    elif not _is_at(worktree, run.path, commit, diff):
        raise RuntimeError(
            f"{worktree} was changed: save the changes that you need, then remove it with git "
            f"worktree remove --force {worktree}"
        )
    if _MASK.encode() in diff:
        plan.notes.append(f"secrets in {run.diff} are masked: put them into {worktree}")
    if untracked := git.get("untracked"):
        plan.notes.append(f"untracked files were not recorded: {', '.join(map(str, untracked))}")
    _move(plan, run.session, Path(program), Path(top), worktree)


def _is_trusted(top: Path) -> bool:
    """Whether the user works in the repository, or it cannot make git run programs."""
    from batteries._environment import git_text

    if Path.cwd().resolve().is_relative_to(top.resolve()):
        return True
    known = git_text(top, "config", "--local", "--name-only", "--list")
    files = git_text(top, "ls-files", "--stage")
    if known is None or files is None or re.search("^160000 ", files, re.MULTILINE):
        return False
    return all(map(_PLAIN.fullmatch, known.splitlines()))


def _move(plan: _Plan, session: dict[str, Any], program: Path, top: Path, worktree: Path) -> None:
    """Run the program of the worktree in the directory of the run."""
    top, here = top.resolve(), Path(plan.directory).resolve()

    def moved(place: Path) -> Path:
        place = place.resolve()
        return worktree / place.relative_to(top) if place.is_relative_to(top) else place

    places = [worktree / "src", worktree]  # for imports of the repository's packages
    for number, word in enumerate(plan.command[1:], start=1):
        if here.joinpath(word).resolve() == program.resolve():
            plan.command[number] = str(moved(program))
            break
    else:  # python -m, which imports from its directory
        if not here.is_relative_to(top):
            own = moved(program)
            plan.obstacles.append(
                f"the command does not have the path {program}: start {own} yourself"
            )
        if str(session.get("python")).startswith("3.10."):
            plan.obstacles.append(
                "python -m of Python 3.10 uses the code of the directory where it runs: check out "
                f"commit and diff in {top} yourself, or add --current-code"
            )
        places.insert(0, moved(here))
        plan.variables["PYTHONSAFEPATH"] = "1"
    told = (session.get("variables") or {}).get("PYTHONPATH") or os.environ.get("PYTHONPATH")
    places += [moved(here / each) for each in str(told or "").split(os.pathsep) if each]
    plan.variables["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(map(str, places)))


def _is_at(directory: Path, run: Path, commit: str, diff: bytes) -> bool:
    from batteries._environment import code

    about, own = code(directory, run)
    return about is not None and about["commit"] == commit and own == diff
