"""Scores that a run is told: `scores.json` in its directory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from batteries._files import PathLike, locked_directory, write_whole
from batteries._foreign import Most, check, read_json
from batteries._rundir.record import check_held

NAME = "scores.json"
SCHEMA = {
    "validation": float,
    "test": float,
    "leaderboard": Most(dict, 32, float),
    "folds": Most(list, 10_000, float),
}


def record_scores(
    run: PathLike,
    *,
    validation: float | None = None,
    test: float | None = None,
    leaderboard: float | None = None,
    name: str = "public",
    folds: Iterable[float] | None = None,
) -> dict[str, Any]:
    """Write scores into a run's directory, beside those it has; what all are is returned.

    >>> record_scores(".", validation=0.93, test=0.91)
    {'validation': 0.93, 'test': 0.91}
    >>> record_scores(".", leaderboard=0.907)
    {'validation': 0.93, 'test': 0.91, 'leaderboard': {'public': 0.907}}

    Args:
        leaderboard: The score there.
        name: Which leaderboard, or which part of it.
        folds: The validation score of each fold.

    Raises:
        ValueError: A score that is not a finite number, with its name, or more than 32
            leaderboards; nothing is written then.
        NotADirectoryError: There is no such run.
        RuntimeError: Another program records it now, and this one did before.
    """
    path = Path(run)
    if not path.is_dir():
        raise NotADirectoryError(f"there is no run {path}")
    new: dict[str, Any] = {
        key: _finite(key, value)
        for key, value in (("validation", validation), ("test", test))
        if value is not None
    }
    if folds is not None:
        new["folds"] = [_finite("folds", value) for value in folds]
    boards = {} if leaderboard is None else {name: _finite("leaderboard", leaderboard)}
    with locked_directory(path):
        check_held(path)
        scores = {**read_scores(path), **new}
        if boards:
            scores["leaderboard"] = {**scores.get("leaderboard", {}), **boards}
        check(scores, SCHEMA)
        with write_whole(path / NAME, inside=path) as file:
            file.write(json.dumps(scores).encode())
    return scores


def read_scores(run: PathLike) -> dict[str, Any]:
    """What `record_scores` wrote.

    Raises:
        ValueError: The file is something else, or damaged.
    """
    path = Path(run, NAME)
    try:
        scores: dict[str, Any] = read_json(path, inside=run)
        check(scores, SCHEMA)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} has no scores: {error}") from None
    return scores


def _finite(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} is {value!r}; expected a finite number")
    return number
