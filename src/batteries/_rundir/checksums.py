"""Checksums of the tensors of each step, `checksums.jsonl`, and where those of two runs differ."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from batteries._files import PathLike, append_whole, make_directory
from batteries._foreign import lines_of, open_regular, printable
from batteries._rundir.lines import parse_line
from batteries._rundir.record import check_held

NAME = "checksums.jsonl"
_SHOWN = 200  # letters of a name
_Sums = dict[str, str]


class Parting(NamedTuple):
    """The first difference between two runs. `first_difference` returns it.

    >>> print(Parting(step=3, names=["batch[0]", "gradient of bias"], equal=2))
    the runs differ from step 3 on, first in batch[0]
    (different tensors in this step: 2; equal steps before it: 2)

    Attributes:
        step: The first step with different checksums; None if all are equal.
        names: The tensors that differ in that step, in the order in which the step makes them.
        equal: The number of earlier steps with equal checksums; if all are equal, of all steps.
    """

    step: int | None
    names: list[str]
    equal: int

    def __str__(self) -> str:
        if self.step is None:
            return f"the checksums are equal at all steps ({self.equal:,})"
        first = printable(self.names[0])[:_SHOWN]
        return (
            f"the runs differ from step {self.step} on, first in {first}\n"
            f"(different tensors in this step: {len(self.names):,}; equal steps before it: "
            f"{self.equal:,})"
        )


def add_checksums(run: PathLike, step: int, sums: _Sums) -> None:
    check_held(run)
    line = json.dumps({"step": step, "checksums": sums}) + "\n"
    append_whole(make_directory(run) / NAME, line.encode(), inside=run)


def first_difference(one: PathLike, other: PathLike) -> Parting | None:
    """The first step in which two runs differ, and the tensors that differ there.

    >>> first_difference("runs/001", "runs/002") is None  # they have no checksums
    True

    It compares the steps that are in both files of `training.log_checksums`. If a file has a step
    twice, as after a crash, the last one counts. If no step is in both files, or a run has no file,
    the result is None.
    """
    # A long run has many names: only a hash of each step is kept, and then the names of one step.
    lines = [
        {step: hash(frozenset(sums.items())) for step, sums in _read(run)} for run in (one, other)
    ]
    both = sorted(lines[0].keys() & lines[1].keys())
    if not both:
        return None
    differs = (n for n, step in enumerate(both) if lines[0][step] != lines[1][step])
    number = next(differs, None)
    if number is None:
        return Parting(None, [], len(both))
    step = both[number]
    first, second = (dict(_read(run))[step] for run in (one, other))
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    return Parting(step, names, number)


def _read(run: PathLike) -> Iterator[tuple[int, _Sums]]:
    """The steps of a file. Torn and foreign lines are left out."""
    path = Path(run, NAME)
    if not path.exists():
        return
    with open_regular(path, inside=run) as file:
        for line in lines_of(file):
            found = parse_line(line) or {}
            step, sums = found.get("step"), found.get("checksums")
            texts = isinstance(sums, dict) and all(isinstance(each, str) for each in sums.values())
            if sums and texts and type(step) is int:
                yield step, sums
