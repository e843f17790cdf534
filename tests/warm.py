"""Programs and functions in new processes, forked from one that has imported torch already.

A fresh interpreter takes seconds to import torch. What is started here behaves as a fresh one: it
has its own environment, directory, files and signals, and at its end it waits for its threads and
calls what was registered with `atexit`. It does not take its modules apart: a test whose subject is
the import or that last moment starts a fresh interpreter.
"""

from __future__ import annotations

import atexit
import gc
import inspect
import multiprocessing
import os
import pkgutil
import random
import runpy
import signal
import subprocess
import sys
import threading
import traceback
import types
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

import batteries

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        *(
            m.name
            for m in pkgutil.walk_packages(batteries.__path__, "batteries.")
            if m.name[-1] != "_"
        ),
        *("pytest", "sklearn.datasets", "torch.utils.tensorboard"),
        # What optimizers and torchrun import when they are first used.
        *("torch._dynamo", "torch.distributed.run", "torch.nn.utils.parametrizations"),
        *("torch.distributed.checkpoint", "torch.distributed.fsdp"),
    ]
)

# A fork has no threads of torch's pool. The first call of torch makes new ones, and calls of other
# threads meanwhile fail or abort ("Invalid thread pool"): gloo's, in forked workers of torchrun.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(torch.get_num_threads()))


def start(function: Callable[..., object], *args: Any) -> BaseProcess:
    """Call a function in a new process."""
    process = context.Process(target=_call, args=(function, args))
    process.start()
    return process


def _call(function: Callable[..., object], args: tuple[Any, ...]) -> None:
    # What the parent made: a collection would copy all of its pages, and so would its finalizers.
    gc.freeze()
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    context.set_forkserver_preload(["torch"])  # workers of a rank come from one of its own
    multiprocessing.set_start_method(None, force=True)  # of workers: as in any program
    function(*args)


# ---------------------------------------------------------------- programs


class Popen(subprocess.Popen[Any]):
    """A program as `subprocess.Popen` starts it: `[sys.executable, ...]`, as Python reads it."""

    def _execute_child(self, *values: Any) -> None:
        given = inspect.signature(subprocess.Popen._execute_child).bind(self, *values).arguments  # type: ignore[attr-defined]
        ends = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        # A connection is what multiprocessing sends a file descriptor in.
        files = [Connection(os.dup(n if end == -1 else end)) for n, end in enumerate(ends)]
        command, own = [os.fspath(word) for word in given["args"]], given["start_new_session"]
        assert command[0] == sys.executable
        env = dict(os.environ if given["env"] is None else given["env"])
        where = os.fspath(given["cwd"] or Path.cwd())
        self._process = start(_program, command[1:], env, where, own, files)
        self.pid = self._process.pid or 0
        self._child_created = True
        self._close_pipe_fds(  # type: ignore[attr-defined]
            *(given[f"{name}{end}"] for name in ("p2c", "c2p", "err") for end in ("read", "write"))
        )

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        self._process.join(0)
        self.returncode = self._process.exitcode
        return self.returncode

    def _try_wait(self, flags: int) -> tuple[int, int]:
        self._process.join(0 if flags else None)
        code = self._process.exitcode
        if code is None:
            return 0, 0
        return self.pid, -code if code < 0 else code << 8


def run(
    command: list[str],
    *,
    input: str | bytes | None = None,  # noqa: A002 (subprocess's own name)
    capture_output: bool = False,
    timeout: float = 500,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """As `subprocess.run`, with a program."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, stdin=None if input is None else subprocess.PIPE, **options) as process:
        try:
            output, errors = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    result = subprocess.CompletedProcess(command, process.returncode, output, errors)
    if check:
        result.check_returncode()
    return result


def torchrun(*words: str) -> list[str]:
    """The command that is torchrun, whose workers are forked as well."""
    options = ["--run-path", "--start-method=fork", "--standalone", "--monitor-interval=0.1"]
    folder = next(str(Path(word).parent) for word in words if word.endswith(".py"))
    program = f"import sys; sys.path.insert(0, {folder!r})\n"
    program += "from torch.distributed.run import main; main()"
    return [sys.executable, "-c", program, *options, *words]


def told_by(lines: Iterable[str]) -> Iterator[str]:
    """What programs said, without what torch 2.10 says of their group."""
    return (line for line in lines if line.strip() and "peer ranks" not in line)


def _program(
    words: list[str], env: dict[str, str], where: str, session: bool, files: list[Connection]
) -> None:
    if session:
        os.setsid()
    for number, file in enumerate(files):
        os.dup2(file.fileno(), number)
        file.close()
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 (multiprocessing has closed its own)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=stream.isatty() or stream is sys.stderr)  # type: ignore[union-attr]
    os.chdir(where)
    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", torch.get_num_threads())))
    np.random.seed(random.randrange(2**32))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = _interpret(words)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads any more
            stream.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)  # to take all modules apart would copy what the parent has made


def _interpret(words: list[str]) -> int:
    """Run what the words of a command line say; the exit code."""
    sys.orig_argv = [sys.executable, *words]
    filters = os.environ.get("PYTHONWARNINGS", "").split(",")
    while words[0] in ("-W", "-u"):
        filters += words[1:2] if words[0] == "-W" else []
        words = words[2:] if words[0] == "-W" else words[1:]
    warnings._processoptions(list(filter(None, filters)))  # type: ignore[attr-defined]
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = __builtins__
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            sys.path.insert(0, str(Path.cwd()))
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.modules["__main__"] = module
            if words[0] == "-c":
                sys.argv, source, name, folder = words[:1] + words[2:], words[1], "<string>", ""
            else:
                sys.argv, name, source = words, words[0], Path(words[0]).read_text()
                module.__file__, folder = os.path.abspath(name), str(Path(name).resolve().parent)
            sys.path.insert(0, folder)
            exec(compile(source, name, "exec", dont_inherit=True), module.__dict__)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        sys.last_value = error
        traceback.print_exc()
        return -signal.SIGINT
    except BaseException as error:
        sys.last_value = error  # as the interpreter does
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0
