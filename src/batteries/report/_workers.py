"""Many runs, read by several processes."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from tqdm import tqdm

from batteries._rundir.lines import NAME
from batteries.report._contents import Contents, contents_of
from batteries.scoreboard import RunInfo

_SMALL = 16 * 2**20  # bytes of lines; reading them takes as long as starting a process
_MOST = 8  # processes
# It gets the import path of this process: -c alone would import from the current directory first.
_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from batteries.report._workers import work; "
_PROGRAM += "work()"


def read_contents(runs: Sequence[RunInfo]) -> list[Contents]:
    """Read runs for the page. Afterwards, the runs also have their metrics."""
    size = 0
    for run in runs:
        with suppress(OSError):
            size += (run.path / NAME).stat().st_size
    count = min(os.cpu_count() or 1, _MOST, size // _SMALL)
    if count < 2:
        # disable=None: a bar in a terminal, and nothing elsewhere
        return [contents_of(run) for run in tqdm(runs, "report", leave=False, disable=None)]
    found: dict[int, Contents] = {}
    with ThreadPoolExecutor(count) as pool:
        parts = [range(first, len(runs), count) for first in range(count)]
        read = pool.map(_read, [[runs[index] for index in part] for part in parts])
        for part, results in zip(parts, read, strict=True):
            found |= zip(part, results, strict=True)
    return [found[index] for index in range(len(runs))]


def _read(runs: list[RunInfo]) -> list[Contents]:
    """Read runs in another process, or in this process if that fails."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM, *sys.path], input=pickle.dumps(runs),
                          capture_output=True, check=False)  # fmt: skip
    if done.returncode:
        return [contents_of(run) for run in runs]
    results = []
    for run, (contents, known, problems) in zip(runs, pickle.loads(done.stdout), strict=True):
        vars(run).update(known)
        run.problems[:] = problems
        results.append(contents)
    return results


def work() -> None:
    """Read runs from the standard input, and write their contents to the standard output."""
    gc.disable()  # a search for cycles would visit all lines, again and again
    found = []
    for run in pickle.load(sys.stdin.buffer):
        contents = contents_of(run)
        known = {name: vars(run)[name] for name in ("metrics", "bytes") if name in vars(run)}
        found.append((contents, known, run.problems))
    pickle.dump(found, sys.stdout.buffer)
