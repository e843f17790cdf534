"""Scores that users record for a run: `scores.json`."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from batteries._direction import said_direction
from batteries._files import PathLike, locked_directory, write_whole
from batteries._foreign import Most, brief, check, open_regular, read_json
from batteries._numbers import as_number
from batteries._rundir.record import NAME as RECORD
from batteries._rundir.record import check_held

NAME = "scores.json"
SCHEMA = {
    "validation": float,
    "test": float,
    "leaderboard": Most(dict, 32, float),
    "folds": Most(list, 10_000, float),
    "metric": Most(str, 1000),
    "minimization": bool,
    "submissions": [
        {"time": Most(str, 100), "file": Most(str, 5000), "sha256": Most(str, 64)}
        | {"message": Most(str, 2000), "scores": Most(dict, 32, float)}
    ],
}


def record_scores(
    run: PathLike,
    *,
    validation: float | None = None,
    test: float | None = None,
    leaderboard: float | Mapping[str, float] | None = None,
    name: str = "public",
    folds: Iterable[float] | Mapping[Any, float] | None = None,
    metric: str | None = None,
    metric_minimization: bool | None = None,
    file: PathLike | None = None,
    message: str | None = None,
) -> dict[str, Any]:
    """Add scores to those in a run's directory, and return all of them.

    >>> scores = record_scores(".", validation=0.93, metric="auc", metric_minimization=False)
    >>> scores["validation"]
    0.93
    >>> scores = record_scores(".", leaderboard=0.907, message="with warmup")
    >>> scores["leaderboard"], scores["submissions"][0]["message"]
    ({'public': 0.907}, 'with warmup')

    The result is the content of `scores.json`. Its `leaderboard` has the newest score of each
    leaderboard. A call with a score of a leaderboard, a `file` or a `message` also adds an entry to
    `submissions`. Scores in entries are never overwritten. If the same file was submitted before
    and has no score of that leaderboard yet, the entry of the file gets the score. After an error,
    all scores are as they were.

    Args:
        run: The directory of the run.
        validation: The validation score. It takes the place of the best epoch's score.
        test: The score on the test set.
        leaderboard: The score, or several by name: `{"public": 0.907, "private": 0.9}`.
        name: The name of the leaderboard, if `leaderboard` is one score.
        folds: The validation score of each fold, in order or by name. Scores by name are stored in
            the order of the names.
        metric: The name of the metric of the validation score, if the run has no
            `CheckpointManager` with a metric.
        metric_minimization: Whether a lower score is better.
        file: The file that was submitted. Its name and its SHA-256 are stored.
        message: A note about the submission.

    Raises:
        TypeError: `metric_minimization` is not a bool.
        ValueError: A score is not a finite number (the error names it), there are more than 32
            leaderboards or no folds, a name is not a text, a text is too long, `run` is a directory
            of runs, or `scores.json` is damaged.
        NotADirectoryError: There is no directory `run`.
        OSError: There is no such `file`, or the scores cannot be written.
        RuntimeError: Another program has taken over the run from this one.
    """
    path = Path(run)
    if not path.is_dir():
        raise NotADirectoryError(f"there is no run {path}")
    if not (path / RECORD).exists() and (inside := next(path.glob(f"*/{RECORD}"), None)):
        raise ValueError(
            f"{path} is no run, but has runs, such as {inside.parent}; pass one of them"
        )
    new: dict[str, Any] = {
        key: _finite(key, value)
        for key, value in (("validation", validation), ("test", test))
        if value is not None
    }
    if folds is not None:
        if isinstance(folds, Mapping):  # in one order for all runs, whose folds are compared
            names = sorted(folds, key=lambda name: (len(str(name)), str(name)))
            folds = [folds[name] for name in names]
        if not isinstance(folds, Iterable):
            raise ValueError(f"folds is {brief(folds)}; expected the validation score of each fold")
        if not (of_folds := [_finite("folds", value) for value in folds]):
            raise ValueError("folds is empty; expected the validation score of each fold")
        new["folds"] = of_folds
    new |= {} if metric is None else {"metric": metric}
    if metric_minimization is not None:
        new["minimization"] = said_direction(metric_minimization, "record_scores")
    told = {} if leaderboard is None else {name: leaderboard}
    told = dict(leaderboard) if isinstance(leaderboard, Mapping) else told
    if odd := [board for board in told if not isinstance(board, str)]:
        raise ValueError(f"a leaderboard is called {brief(odd[0])}; expected a string")
    boards = {board: _finite("leaderboard", value) for board, value in told.items()}
    submission: dict[str, Any] = {} if message is None else {"message": str(message)}
    if file is not None:
        submission = {"file": os.fspath(file), "sha256": _digest(file), **submission}
    with locked_directory(path):
        check_held(path)
        scores = {**read_scores(path), **new}
        if boards:
            scores["leaderboard"] = {**scores.get("leaderboard", {}), **boards}
        if boards or submission:
            scores["submissions"] = _ledger(scores.get("submissions", []), submission, boards)
        check(scores, SCHEMA)
        with write_whole(path / NAME, inside=path) as new_file:
            new_file.write(json.dumps(scores).encode())
    return scores


def read_scores(run: PathLike) -> dict[str, Any]:
    """The scores of `record_scores`; empty if there are none."""
    path = Path(run, NAME)
    try:
        scores: dict[str, Any] = read_json(path, inside=run)
        check(scores, SCHEMA)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(
            f"{path} is not a file of record_scores: {error}. Restore it from a copy, or remove it"
        ) from None
    return scores


def _ledger(
    known: list[dict[str, Any]], new: dict[str, Any], boards: dict[str, float]
) -> list[dict[str, Any]]:
    """The submissions with a new one, or with more scores of an old one."""
    for number, each in enumerate(known):
        told = each.get("scores", {})
        same = new.get("sha256") is not None and each.get("sha256") == new["sha256"]
        if same and not told.keys() & boards.keys():
            more = {**each, **new, "scores": {**told, **boards}}
            return [*known[:number], more, *known[number + 1 :]]
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return [*known, {"time": now, **new, "scores": boards}]


def _digest(path: PathLike) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while data := file.read(2**20):
            digest.update(data)
    return digest.hexdigest()


def _finite(name: str, value: Any) -> float:
    with suppress(TypeError):
        if math.isfinite(found := as_number(value, name)):
            return found
    raise ValueError(f"{name} is {brief(value)}; expected a finite number")
