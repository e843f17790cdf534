"""The commands of the examples' READMEs as they stand, to the scores that they promise."""

from __future__ import annotations

import random
import re

from test_examples import readme_command, run, run_and_look, run_folds, submit
from test_examples_tabular import compete


def examples(number: int, _: random.Random) -> str:
    """Run so many of the examples, in the order of their cost."""
    for name in ("device", "ddp", "dp")[:number]:
        run_and_look(name, score=0.97)
    if number > 3:
        run_folds(readme_command("kfold"), score=0.97)
    if number > 4:
        submit(readme_command("submission"), score=0.98)
    if number > 5:
        [bits] = told_by("lm", r"test bits per byte (\S+),")
        assert bits <= 2.8
    if number > 6:
        [top1] = told_by("images", r"test top-1 \S+, top-5 \S+; with flips (\S+),")
        assert top1 >= 0.95
    if number > 7:
        compete(readme_command("tabular"), score=0.6, folds=5)
    return f"{min(number, 8)} examples, all with their files and their scores"


def told_by(name: str, pattern: str) -> list[float]:
    return [float(score) for score in re.findall(pattern, run(readme_command(name)).stderr)]
