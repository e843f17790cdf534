"""Let the n-th call of a program on the files of a directory fail, whatever the call is."""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

SOURCE = Path(__file__).with_name("faults.c")


def run_with_faults(function: Callable[..., Any], *args: Any) -> Any:
    """Return what a function returned in a process in which `failing` works."""
    return _process().submit(_in_directory, str(Path.cwd()), function, args).result()


def _in_directory(directory: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    os.chdir(directory)
    return function(*args)


@functools.cache
def _process() -> ProcessPoolExecutor:
    compiler = shutil.which("cc")
    if os.uname().sysname != "Linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler, to make calls of the system fail")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        library = f"{folder}/faults.so"
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", library, str(SOURCE), "-ldl"]
        subprocess.run(command, check=True)
        patch.setenv("LD_PRELOAD", library)
        patch.setenv("CUDA_VISIBLE_DEVICES", "-1")
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(1, mp_context=spawn)
        pool.submit(torch.set_num_threads, 1).result()  # it has begun
    return pool


@contextmanager
def failing(directory: Path, number: int, error: int, calls: str = "") -> Iterator[None]:
    """Let one call on the files of an absolute path fail.

    Args:
        number: Which; 0 for none, -1 for all.
        error: The number of the error.
        calls: Count those of one name only.
    """
    library = ctypes.CDLL(None)
    library.faults_arm(os.fsencode(directory), calls.encode(), ctypes.c_long(number), error)
    try:
        yield
    finally:
        library.faults_disarm()


def trace() -> list[str]:
    """The calls since `failing` began: `name path`, after `!` where it failed."""
    library = ctypes.CDLL(None)
    library.faults_trace.restype = ctypes.c_char_p
    lines: list[str] = library.faults_trace().decode().splitlines()
    return lines
