"""Folds in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batteries._files import write_whole
from batteries._foreign import check_regular
from batteries.splits._assignment import Folds
from batteries.splits._tables import polars_for

_LEFT = "left out"  # prefix of the columns of rows that a fold does not use


def kept(
    path: Path, rows: int, kind: str, made_of: str, make: Callable[[], Folds]
) -> tuple[Folds, str]:
    polars = polars_for("folds in a file")
    if path.exists():
        return _load(polars, path, rows, kind, made_of), made_of
    folds = make()
    left_out = () if folds.left_out is None else folds.left_out
    columns: dict[str, Any] = {"row": np.arange(rows)}
    for at, column in enumerate(np.atleast_2d(folds.assignment)):
        columns[f"fold {at}" if at else "fold"] = column
    columns |= {f"{_LEFT} {at}": column for at, column in enumerate(left_out)}
    told = {"kind": folds.kind, "hash": folds.hash, "made_of": made_of}
    frame = polars.DataFrame(columns | {name: [value] * rows for name, value in told.items()})
    with write_whole(path) as file:
        (frame.write_csv if path.suffix == ".csv" else frame.write_parquet)(file)
    return folds, made_of


def digest(*parts: Any) -> str:
    numpys = np.ndarray | np.generic  # their repr depends on numpy's version
    listed = (part.tolist() if isinstance(part, numpys) else part for part in parts)
    return hashlib.blake2b("".join(map(repr, listed)).encode(), digest_size=8).hexdigest()


def _load(polars: Any, path: Path, rows: int, kind: str, made_of: str) -> Folds:
    frame = _read(polars, path)
    if not {"row", "fold", "kind", "hash", "made_of"} <= set(frame.columns) or not len(frame):
        raise ValueError(
            f"{path} is not a file of make_folds: it has the columns {frame.columns}; pass another "
            "path"
        )
    if len(frame) != rows:
        raise ValueError(
            f"{path} has folds of {len(frame)} rows, but the data has {rows}: pass the same data, "
            "or remove the file to make new folds"
        )
    repeats = _columns(frame, "fold", polars.Int64)
    left_out = _columns(frame, _LEFT, polars.Boolean)
    folds = Folds(
        repeats if len(repeats) > 1 else repeats[0],
        frame["kind"][0] or "",
        left_out.astype(bool) if len(left_out) else None,
    )
    in_order = frame["row"].to_list() == list(range(rows))
    if not in_order or folds.hash != frame["hash"][0]:
        raise ValueError(
            f"{path} was changed since it was written: restore it from a copy, or remove it"
        )
    if frame["made_of"][0] != made_of:
        raise ValueError(
            f"{path} was made with another n_folds, kind, seed, targets, groups, time, gap, "
            "embargo, window or repeats (kind "
            f"{folds.kind!r}, {folds.n_folds} folds; asked for: {kind!r}): pass the same "
            "arguments, or remove the file to make new folds"
        )
    return folds


def _columns(frame: Any, kind: str, dtype: Any) -> NDArray[np.int64]:
    """The numbers of all columns of a kind, (columns, rows); -2 for other values."""
    names = [name for name in frame.columns if name.startswith(kind)]
    numbers = [frame[name].cast(dtype, strict=False).cast(int, strict=False) for name in names]
    return np.array([each.fill_null(-2).to_numpy() for each in numbers], dtype=np.int64)


def _read(polars: Any, path: Path) -> Any:
    text = dict.fromkeys(("kind", "hash", "made_of"), polars.String)
    check_regular(path)
    try:
        if path.suffix == ".csv":
            return polars.read_csv(path, schema_overrides=text)
        return polars.read_parquet(path)
    except (polars.exceptions.PolarsError, polars.exceptions.PanicException) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): restore it from a copy, or remove it"
        ) from error
