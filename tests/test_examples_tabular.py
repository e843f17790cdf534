"""The example with a table, as its users run it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import f1_score
from test_examples import readme_command, run


def test_tabular() -> None:
    """A table becomes a valid submission, also if the time was enough for two folds alone."""
    command = readme_command("tabular")
    compete([*command, "--visits=8", "--num-epochs=1", "--time-limit=1s"], score=0.3, folds=2)


def compete(command: list[str], score: float, folds: int) -> None:
    result = run(command)
    chosen = re.search(r"chosen by validation: (\S+); .* private F1 (\S+)$", result.stderr, re.M)
    assert chosen
    assert float(chosen[2]) >= score
    assert len(re.findall(r"fold \d: \d+ rows, \d+ for validation", result.stderr)) == folds
    assert re.search(r"can tell test from train: AUC \S+, by .*counter", result.stderr)
    assert "0 % of the test rows are of shops in train" in result.stderr
    assert "<Stack: unseen folds" in result.stdout
    root = Path("runs/tabular/001")
    sample = (root / "data/sample_submission.csv").read_text().splitlines()
    rows = [line.split(",") for line in sample]
    own = (root / f"submissions/{chosen[1]}/submission.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in own] == [row[0] for row in rows]
    assert (root / "look.png").read_bytes().startswith(b"\x89PNG")
    ledger = json.loads((root / "scores.json").read_text())["submissions"]
    assert [each["message"] for each in ledger][-3:] == ["mean", "weights", "stack"]
    table = result.stdout.split("\nF1 ")[1].splitlines()
    assert table[0].split() == ["validation", "OOF", "public", "private"]
    answers = pl.read_csv(root / "data/hidden/answers.csv")
    said = np.array([int(line.split(",")[1]) for line in own[1:]])
    private = ~answers["public"].to_numpy()
    expected = f1_score(answers["returns"].to_numpy()[private], said[private])
    assert float(chosen[2]) == pytest.approx(expected, abs=1e-4)
