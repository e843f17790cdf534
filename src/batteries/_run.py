"""The run directory, and the record of what made it."""

from __future__ import annotations

import dis
import errno
import os
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, NoReturn

from batteries._arguments import differing, is_longer
from batteries._arrays import as_names
from batteries._environment import code, environment, program_directory
from batteries._files import PathLike, Place, locked_directory, make_directory, write_whole
from batteries._masking import masked, masked_command
from batteries._preemption import PreemptionGuard
from batteries._processes import call_at_end, is_alive, own_process
from batteries._rundir import alive as signs
from batteries._rundir import record as run_record
from batteries._rundir.history import summaries
from batteries._rundir.names import RESUMED, diff_name
from batteries._rundir.record import NAME, read_record, write_record
from batteries._warnings import warn
from batteries.distributed import is_main, rank_zero_only, world_size
from batteries.distributed._groups import with_cause

_ENDS = ("finished", "stopped", "failed")
_runs: dict[str, Run] = {}  # the runs that this process records, by session


@rank_zero_only(share=True)
def run_directory(logdir: PathLike, *, resume: bool = False, unless: str | None = None) -> Path:
    """Create the next numbered directory in `logdir`, so that no two runs share a directory.

    >>> run_directory("runs/digits").as_posix()
    'runs/digits/001'
    >>> run_directory("runs/digits").as_posix()
    'runs/digits/002'
    >>> run_directory("runs/digits", resume=True).as_posix()
    'runs/digits/002'

    All ranks call it and get the same directory. Nothing is deleted.

    Args:
        logdir: The directory of numbered runs. It is created if it does not exist.
        resume: Return the newest directory if its run has not finished. `run_directory` does not
            check the arguments of that run; `start_run` does.
        unless: The name of a file that a run writes when it is finished. A run with this file, or
            one that `start_run` has recorded as finished, is not resumed.

    Raises:
        NotADirectoryError: `logdir` is a file.
        ValueError: The `run.json` of the run to resume is not the record of a run.
    """
    logdir = make_directory(logdir)
    newest = _unfinished(logdir) if resume else None
    if newest and not (unless and (newest / unless).exists()):
        return newest
    return _new_directory(logdir)


def _unfinished(logdir: Path) -> Path | None:
    """The newest run; None if there is no run, or if the newest run is recorded as finished."""
    runs = (path for path in logdir.glob("[0-9]*") if path.name.isdecimal() and path.is_dir())
    newest = max(runs, key=lambda path: int(path.name), default=None)
    record = read_record(newest) if newest else None
    return None if record and record["sessions"][-1].get("state") == "finished" else newest


def _new_directory(logdir: Path) -> Path:
    numbers = (int(path.name) for path in make_directory(logdir).iterdir() if path.name.isdecimal())
    number = max(numbers, default=0) + 1
    while True:
        path = logdir / f"{number:03d}"
        try:
            path.mkdir()
        except FileExistsError:  # another program took the number
            number += 1
        else:
            return path


class Run:
    """A run with a record. `start_run` returns it.

    >>> with start_run("runs/digits", {"lr": 0.1}) as run:
    ...     print(run, run.resumed)
    runs/digits/001 False
    >>> start_run("runs/digits").path.name  # 001 is finished
    '002'

    You can pass a run in place of its directory, for example `JsonLinesLogger(run)`.

    Attributes:
        path: The directory of the run, the same on every rank.
        id: The run's id, which stays the same when the run is resumed.
        resumed: Whether an earlier run was resumed.
    """

    path = Place()

    def __init__(self, path: Path, id: str, resumed: bool, session: str) -> None:  # noqa: A002
        self.path = path
        self.id = id
        self.resumed = resumed
        self._session = session
        self._ended = threading.Event()  # set when the end is recorded
        self._end: dict[str, Any] = {}
        if is_main():
            run_record.hold(path, session)
            self._program = _Program()
            _runs[session] = self
            self._cancel_exit = call_at_end(self._close_at_exit)
            threading.Thread(target=_beat, args=(path.absolute(), self._ended), daemon=True).start()

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return self.path.as_posix()

    def close(
        self,
        state: Literal["finished", "stopped", "failed"] = "finished",
        error: str | None = None,
        why: str | None = None,
    ) -> None:
        """Record how the run ended. Calling it again has no effect.

        Rank 0 writes. On the other ranks, it does nothing.

        Args:
            state: "finished", "stopped" or "failed".
            error: The text of the error, for "failed".
            why: The reason for "stopped", such as `guard.why`.

        Raises:
            OSError: The record cannot be written, or was removed. The program tries again at its
                end.
            ValueError: `state` is another text, or `run.json` is not the record of a run.
        """
        if state not in _ENDS:
            raise ValueError(f"state is {state!r}; expected 'finished', 'stopped' or 'failed'")
        if self._ended.is_set() or not is_main():
            return
        told = {} if why is None else {"why": why}
        self._end = self._end or {"state": state, "error": error, "stopped": _now(), **told}
        own: list[dict[str, Any]] = []
        if self.path.exists():
            with locked_directory(self.path):
                record = read_record(self.path) or {"sessions": []}
                own = [each for each in record["sessions"] if each.get("id") == self._session]
                if own:
                    own[0].update(self._end, stages=summaries(self.path))
                    write_record(self.path, record)
        if not own:
            raise FileNotFoundError(
                errno.ENOENT,
                f"the end of the run is not recorded ({self._end['state']}): its {NAME} was "
                "removed, or the whole directory",
                str(self.path / NAME),
            )
        self._ended.set()
        _runs.pop(self._session, None)
        self._program.forget()
        self._cancel_exit()

    def _close_at_exit(self) -> None:
        if self._program.is_this():
            with suppress(FileNotFoundError):  # the directory was removed
                self.close(*_state_after(self._program.error()))

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self.close(*_state_after(error))
        except OSError as failure:
            if error is None:
                raise
            # The error of the training is the one to raise.
            warn(f"the end of {self.path} is not recorded: {failure}")


def start_run(
    logdir: PathLike, args: Any = None, *, new: bool = False, may_differ: str | Iterable[str] = ()
) -> Run:
    """Start a new run, or resume an unfinished one, and record its program and its end.

    >>> with start_run("runs/digits", {"lr": 0.1}) as run:
    ...     logger = get_logger("experiment", log_file=run.path / "log.txt")

    Each start adds a session to `run.json` in the run's directory: arguments, command line, git
    commit, versions, machine, world size and times. The changes since the commit are in
    `diff-1.patch` for the first session, `diff-2.patch` for the second, and so on. Secrets are
    masked. At the end of the `with` or of the program, the session becomes "finished", "failed"
    or "stopped" (Ctrl-C, or a signal that the program caught, for example with a
    `PreemptionGuard`). A session that stays "running" was killed, for example by a SIGTERM that
    nothing caught. Without a `with`, a program that ends with
    `raise SystemExit(...)` is "stopped", because Python hides the exit code.

    If `logdir` is the directory of numbered runs, its newest run is resumed only with its own
    arguments; an error names those that differ. A finished run
    is resumed only if `logdir` is its own directory; otherwise a new run begins. If the new run
    differs from the finished one only in more epochs or steps, there is a warning. In a notebook, a
    second call stops the run of the first call and resumes it.

    All ranks call it and get the same directory. Rank 0 writes.

    Args:
        logdir: The directory of numbered runs, whose newest run is resumed unless it has finished.
            Or the directory of one run, which is resumed in any case, whatever its arguments are.
        args: A mapping, an `argparse.Namespace`, a dataclass, a named tuple, or a configuration of
            attrs, pydantic, omegaconf or ml_collections, also nested; or a class with attributes
            (`class CFG:`). Without `args`, the options of the command line are compared.
        new: Start a new run in any case.
        may_differ: Names of arguments that may differ in a resumed run: "num_workers", or
            "data.num_workers" for a nested one.

    Raises:
        RuntimeError: Another process or this program is recording the run; the message says which.
        ValueError: The newest run of `logdir` has other arguments, or its `run.json` is not the
            record of a run; or `new=True`, and `logdir` is the directory of a run.
        NotADirectoryError: `logdir` is a file.
    """
    same = as_names(may_differ)
    path, name, resumed, session, host = _begin(Path(logdir), args, new, same, world_size())
    if not is_main():
        run_record.check_seen(path, session, host)
    return Run(path, name, resumed, session)


@rank_zero_only(share=True)
def _begin(
    logdir: Path, args: Any, new: bool, may_differ: list[str], ranks: int
) -> tuple[Path, str, bool, str, str]:
    asked = _asked_for(logdir)
    path = asked or _chosen(logdir, new)
    # The arguments come first, because their secrets are then masked in all other values, too.
    recorded = masked({} if args is None else args)
    about, diff = code(program_directory(), path)
    session = {
        "id": uuid.uuid4().hex[:16],
        **own_process(),
        "state": "running",
        "started": _now(),
        "stopped": None,
        "error": None,
        "args": recorded,
        "command": masked_command([sys.executable, *sys.argv]),
        **_launch(),
        "world_size": ranks,
        "git": about,
        **environment(),
    }
    with _left(path) as record:
        resumed = record is not None
        if record is not None and path not in (logdir, asked):
            _check_same(path, record["sessions"][-1], session, may_differ)
        if record is None and not new:
            _tell_longer(path, session, may_differ)
        record = record or {"id": uuid.uuid4().hex[:16], "sessions": []}
        if about is not None and diff:
            about["diff"] = diff_name(len(record["sessions"]) + 1)
            with write_whole(path / about["diff"], len(diff), inside=path) as file:
                file.write(diff)
        record["sessions"].append(session)
        write_record(path, record)
    return path, record["id"], resumed, session["id"], session["host"]


@contextmanager
def _left(path: Path) -> Iterator[dict[str, Any] | None]:
    """Lock the directory of a run that no process records, and return its record."""
    dead: list[Any] = [None]  # sessions that have ended
    while True:
        with locked_directory(path):
            record = read_record(path)
            last = record["sessions"][-1] if record else None
            if last in dead or (last and last.get("state") != "running"):
                yield record
                return
        assert last is not None
        if last.get("id") in _runs and hasattr(sys, "ps1"):  # a cell of a notebook was run again
            _runs[last["id"]].close("stopped")
            continue
        alive = is_alive(last)  # the directory is not locked while the process is watched
        who = f"process {last.get('pid')} on {last.get('host')}"
        if last.get("id") in _runs:
            raise RuntimeError(
                f"this program records {path} already, since {last.get('started')}: close "
                "that run first (run.close()), or start another one with new=True"
            )
        if alive or (alive is None and signs.shows_life(path)):
            raise RuntimeError(
                f"{path} is recorded by {who} since {last.get('started')}: wait for its end, or "
                "start another run with new=True"
            )
        if alive is None:
            warn(
                f"{path} was recorded by {who}, which gave no sign of life for "
                f"{signs.WATCH:g} s: it counts as killed, and its run is resumed",
            )
        dead.append(last)


def _launch() -> dict[str, Any]:
    """The command, the directory and the file of the program. They can start it again."""
    words, own = sys.orig_argv[1:], sys.argv[1:]
    if words[len(words) - len(own) :] != own or "--multiprocessing-fork" in words:
        words = sys.argv  # the program has changed sys.argv, or is a child of another program
    if "TORCHELASTIC_RUN_ID" in os.environ:
        here, all_ = (int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        nodes = [f"--nproc-per-node={here}", f"--nnodes={all_ // here}"]
        before = [word for word in words[: len(words) - len(own)] if word != "-u"]  # of torchrun
        words = ["-m", "torch.distributed.run", *nodes, *before, *own]
    program = getattr(sys.modules.get("__main__"), "__file__", None)
    program = os.path.abspath(program) if program else None
    given = os.sep + os.path.normpath("".join(sys.argv[:1]))
    began = program[: -len(given)] or os.sep if program and program.endswith(given) else None
    return {
        "launch": masked_command([sys.executable, *words]),
        "directory": began or os.fspath(Path.cwd()),  # the program may have left the first one
        "program": program,
    }


def _asked_for(logdir: Path) -> Path | None:
    """The run that `batteries resume` asks for at the first call, if `logdir` has it."""
    run = os.environ.get(RESUMED)
    if run and logdir.resolve() in (Path(run).parent.resolve(), Path(run).resolve()):
        del os.environ[RESUMED]
        return Path(run)
    if run:
        warn(
            f"{RESUMED} asks for {run}, which is not in {logdir.resolve()}, so another run begins "
            "or goes on there. If the log directory of the program is relative, start the program "
            "in the directory that `batteries resume` prints",
        )
    return None


def _chosen(logdir: Path, new: bool) -> Path:
    if (logdir / NAME).exists():
        if new:
            raise ValueError(f"{logdir} is a run: with new=True, pass the directory above it")
        return logdir
    newest = None if new else _unfinished(logdir)
    return newest if newest and read_record(newest) else _new_directory(logdir)


def _check_same(
    path: Path, before: dict[str, Any], now: dict[str, Any], may_differ: list[str]
) -> None:
    """Raise if a run has other arguments, because its weights and optimizer would be loaded."""
    pairs = differing(before, now, may_differ)
    if pairs:
        none = "not given"
        found = ((name, old or none, new or none) for name, (old, new) in pairs.items())
        differ = "; ".join(f"{name} was {old}, is {new}" for name, old, new in found)
        raise ValueError(
            f"{path} is not finished and has other arguments: {differ}. Start another run with "
            f"new=True; or resume it: pass its own directory, or may_differ={[*pairs]}"
        )


def _tell_longer(path: Path, now: dict[str, Any], may_differ: list[str]) -> None:
    """Warn if a new run differs from the last, finished one only in more epochs or steps."""
    before = [each for each in path.parent.iterdir() if each.name.isdecimal() and each != path]
    last = max(before, key=lambda each: int(each.name), default=None)
    with suppress(ValueError):
        record = read_record(last) if last is not None else None
        pairs = differing(record["sessions"][-1], now, may_differ) if record else {}
        if pairs and all(is_longer(name, *pair) for name, pair in pairs.items()):
            told = ", ".join(f"{name} was {old}, is {new}" for name, (old, new) in pairs.items())
            warn(
                f"{last} has finished ({told}), and {path} is a new run, from the beginning. To "
                f"extend the finished run, pass its own directory, start_run({str(last)!r}), "
                "and resume from its last checkpoint; new=True avoids this warning",
            )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _state_after(
    error: BaseException | None,
) -> tuple[Literal["finished", "stopped", "failed"], str | None, str | None]:
    """The state, the error and the reason of a run's end, from the exception that ended it."""
    code = error.code if isinstance(error, SystemExit) else None
    if error is None or (isinstance(error, SystemExit) and code in (None, 0)):
        return "finished", None, None
    by_signal = isinstance(code, int) and (code > 128 or code == PreemptionGuard.exit_code)
    if isinstance(error, KeyboardInterrupt) or by_signal:
        why = "SIGINT" if code is None else getattr(code, "why", None)
        return "stopped", None, why
    return "failed", with_cause(error), None


class _Program:
    """Finds out how the program ends. An exit function calls it, and Python does not tell it."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._last = getattr(sys, "last_value", None)  # an older error
        self._frame = frame = sys._getframe()
        # Find the outermost frame of `__main__`; if there is none, the outermost frame of all.
        # A fork also has the frames of its parent.
        while frame.f_back and frame.f_code is not BaseProcess.run.__code__:
            frame = frame.f_back
            if self._frame.f_globals is not vars(sys.modules["__main__"]) or (
                frame.f_globals is self._frame.f_globals
            ):
                self._frame = frame
        # The exit code of a `raise SystemExit` is not known. From Python 3.13 on, an error that has
        # ended a process of multiprocessing is not known either.
        outermost = self._frame, self._frame.f_back
        started = any(each and each.f_code is BaseProcess.run.__code__ for each in outermost)
        self._code: object = 1 if started else PreemptionGuard.exit_code
        self._exit = sys.exit
        self._noting = sys.exit = self._note

    def _note(self, status: Any = None, /) -> NoReturn:
        self._code = status
        self._exit(status)

    def forget(self) -> None:
        if sys.exit is self._noting:
            sys.exit = self._exit

    def is_this(self) -> bool:
        """False in a fork."""
        return os.getpid() == self._process

    def error(self) -> BaseException | None:
        """The exception that ends the program, or None."""
        if (raised := sys.exc_info()[1]) is not None:  # a process of multiprocessing ends in it
            return raised
        last: BaseException | None = getattr(sys, "last_value", None)
        if last is not None and last is not self._last:
            return last
        # The last instruction of the outermost frame shows whether it returned or raised.
        left = dis.opname[self._frame.f_code.co_code[self._frame.f_lasti]]
        return None if left.startswith("RETURN") else SystemExit(self._code)


def _beat(run: Path, ended: threading.Event) -> None:
    """Write signs of life, for processes on other hosts."""
    while not ended.wait(signs.BEAT):
        with suppress(OSError, ValueError):
            signs.beat(run)
