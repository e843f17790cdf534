"""The run directory."""

from __future__ import annotations

from pathlib import Path

from batteries.distributed import rank_zero_only
from batteries.files import PathLike, make_directory


@rank_zero_only(share=True)
def run_directory(logdir: PathLike, resume: bool = False, unless: str | None = None) -> Path:
    """Create the next numbered directory of `logdir`; no run ever writes into another's.

    >>> run_directory("runs/digits").as_posix()
    'runs/digits/001'
    >>> run_directory("runs/digits").as_posix()
    'runs/digits/002'
    >>> run_directory("runs/digits", resume=True).as_posix()
    'runs/digits/002'

    All ranks call it and get the same directory. Nothing is ever deleted.

    Args:
        resume: Return the newest one instead, if there is one.
        unless: A file that a run writes when it is finished: such a run is not resumed.

    Raises:
        NotADirectoryError: `logdir` is a file.
    """
    logdir = make_directory(logdir)
    names = {int(path.name): path for path in logdir.iterdir() if path.name.isdecimal()}
    runs = [number for number, path in names.items() if path.is_dir()]
    if resume and runs and not (unless and (names[max(runs)] / unless).exists()):
        return names[max(runs)]
    number = max(names, default=0) + 1
    while True:
        path = logdir / f"{number:03d}"
        try:
            path.mkdir()
        except FileExistsError:  # another program took the number in between
            number += 1
        else:
            return path
