"""Play the competition's server: only this program reads the answers of the test.

    python examples/tabular/score.py data submission.csv

It prints the public score, which is F1 on 30 % of the rows. With `--private` it prints the score
on the other rows. In a competition, this score is secret until the end.
"""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl
from sklearn.metrics import f1_score


def score(folder: Path, submission: Path, public: bool) -> float:
    answers = pl.read_csv(folder / "hidden/answers.csv").filter(pl.col("public") == public)
    own = answers.join(pl.read_csv(submission), on="id", suffix=" said", validate="1:1")
    return float(f1_score(own["returns"], own["returns said"]))


if __name__ == "__main__":
    print(f"{score(Path(sys.argv[1]), Path(sys.argv[2]), '--private' not in sys.argv):.5f}")
