"""A first look at data: its columns, missing values, and whether test is like train."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from batteries._files import PathLike, write_whole
from batteries._numbers import as_seed
from batteries._optional import import_optional
from batteries._spellings import hints
from batteries.splits._adversarial import PARTS, tell_apart, tells
from batteries.splits._tables import (
    as_table,
    column_of,
    id_columns,
    is_missing,
    known_names,
    polars_for,
)

if TYPE_CHECKING:
    from polars import DataFrame

_MOST = 15  # bars of a panel
_LEAK = 0.98  # with more AUC or R², a column alone nearly determines the target
Table = dict[str, NDArray[Any]]


class Look(NamedTuple):
    """What `look` returns. `plot` draws it on one page.

    >>> Look(columns=None, classes=None, auc=0.5, spread=0.01).auc
    0.5

    Attributes:
        columns: A polars frame with a row for each column, or one row for an array. `look`
            describes it.
        classes: A polars frame with a row for each different target: "class", its number of "rows",
            and their fraction, "part". None without targets, and for several labels.
        auc: The AUC of a classifier that distinguishes train from test. Near 0.5, train and test
            are alike; near 1, they differ.
        spread: The standard deviation of `auc` over five folds.
        note: The reason if `auc` is NaN; empty otherwise.
        missing: A polars frame with a row for each set of columns that are "missing" in the same
            rows, and the number of these rows "in train" and "in test".
    """

    columns: DataFrame
    classes: DataFrame | None
    auc: float
    spread: float
    note: str = ""
    missing: DataFrame | None = None

    @property
    def leaks(self) -> list[str]:
        """The names of columns that alone nearly determine the target (AUC or R² over 0.98)."""
        told = self.columns.filter(self.columns["tells target"].fill_null(0.0) > _LEAK)
        return list(told["column"])

    def plot(self, path: PathLike) -> None:
        """Draw the page as a PNG file: differing columns, leaks, missing values, and classes.

        Raises:
            OSError: The file cannot be written.
            ModuleNotFoundError: matplotlib is not installed.
        """
        figures = import_optional("matplotlib.figure", for_="Look.plot")
        figure = figures.Figure(figsize=(11, 8), layout="constrained")
        panels = figure.subplots(2, 2)
        columns = self.columns
        found = self.note or f"AUC {self.auc:.3f} ± {self.spread:.3f}"
        _bars(
            *(panels[0, 0], columns["column"], columns["tells test"]),
            f"columns that differ between train and test\n({found})",
        )
        _bars(
            *(panels[0, 1], columns["column"], columns["tells target"]),
            "how well one column predicts the target (AUC or R²)",
        )
        if self.missing is not None:
            for side, shift, color in (("train", 0.2, "C0"), ("test", -0.2, "C1")):
                rows = self.missing.head(_MOST)
                _bars(
                    *(panels[1, 0], rows["missing"], rows[f"in {side}"]),
                    "rows in which these columns are missing: train above, test below",
                    shift=shift, color=color,
                )  # fmt: skip
        names: Any = ()
        parts: Any = ()
        if self.classes is not None:
            rows = self.classes.sort("rows", descending=True)
            names, parts = rows["class"], rows["part"]
        _bars(panels[1, 1], names, parts, "the fraction of each class")
        with write_whole(path) as file:
            figure.savefig(file, format="png", dpi=110)


@hints
def look(
    train: Any,
    test: Any,
    targets: Any = None,
    seed: int = 42,
    *,
    groups: Any = None,
    ids: str | Sequence[str] | None = None,
) -> Look:
    """Take a first look at data: its columns, missing values, and whether test is like train.

    >>> chance = np.random.default_rng(0)
    >>> seen = look({"a": chance.normal(size=300)}, {"a": chance.normal(size=200) + 3})
    >>> seen.columns.row(0, named=True)["missing in test"], round(seen.auc, 1)
    (0, 1.0)

    The comparison is adversarial validation. A quick classifier learns to distinguish train from
    test, on at most 5,000 rows of each. `auc` is its cross-validated area under the ROC curve. An
    infinity counts as missing there. With fewer than 5 rows of train or test, `auc` is NaN, and
    `note` says why.

    `Look.columns` has, for each column:

    - "kind": "target", "id" (a different value in each row), "group", or "feature". The classifier
      gets only features, since ids and groups always differ.
    - "tells test": the loss of `auc` when the column is permuted.
    - "tells target": how well the column alone predicts the target of unseen rows, as AUC (0.5 is
      chance), or as R² if the targets are numbers. A value near 1 is a leak: see `Look.leaks`.
    - "known in test": the fraction of test rows whose value is also in train, for texts and whole
      numbers. If this is near 0 for a column of groups, use folds by group.
    - "train dtype": the type with the shape. "missing in train", "infinite in train": the number of
      such values. The same columns exist for test.

    Args:
        train: A table, or an array or tensor, (rows, ...).
        test: The test data in the same form. Only columns in both are compared.
        targets: Classes or numbers of train, (rows,), or the name of a column.
        seed: The seed of the classifiers, of their folds and of the choice of rows.
        groups: The name of the column of groups, or several names.
        ids: The names of the columns of ids. Default: columns of whole numbers, or of texts without
            spaces, that have a different value in each row of train, and in each row of test.

    Raises:
        TypeError: `train` or `test` is not a table or an array, or `seed` is not a whole number.
        ValueError: No column is in both tables, rows have different shapes, a row has no target, or
            a column is unknown.
        ModuleNotFoundError: polars or scikit-learn is not installed.
    """
    polars = polars_for("look")
    tables = [as_table(train), as_table(test)]
    name = targets if isinstance(targets, str) else None
    truth, seed = column_of(train, targets, "targets"), as_seed(seed)
    kinds = _kinds(tables, name, groups or (), ids)
    shared = [key for key in tables[0] if key in tables[1] and key != name]
    features = [key for key in shared if kinds[key] == "feature"] or shared  # ids, or nothing
    if not features:
        raise ValueError(
            f"train and test have no column in common: train has {list(tables[0])[:_MOST]}, and "
            f"test has {list(tables[1])[:_MOST]}"
        )
    _check_shapes(tables, shared, truth)
    balance = None if truth is None or truth.ndim > 1 else polars.DataFrame(_balance(truth))
    few = [f"{len(table[shared[0]])} in {side}" for side, table in _named(tables)]
    aucs, note = [math.nan] * 2, ""
    lost: dict[str, float] = {}
    if min(len(table[shared[0]]) for table in tables) < PARTS:
        note = f"too few rows to compare: {' and '.join(few)}; at least {PARTS} of each are needed"
    else:
        aucs, lost = tell_apart([{key: table[key] for key in features} for table in tables], seed)
    rows = [
        _row_of(key, tables, {"kind": kinds[key], "tells test": lost.get(key)})
        | {"tells target": tells(tables[0].get(key), truth, seed) if key != name else None}
        for key in dict.fromkeys([*tables[0], *tables[1]])
    ]
    columns = polars.DataFrame(rows, infer_schema_length=None)  # the first rows may have None
    spread = float(np.std(aucs, ddof=1))
    return Look(columns, balance, float(np.mean(aucs)), spread, note, _together(tables))


def _kinds(
    tables: list[Table], target: str | None, groups: str | Sequence[str], ids: Any
) -> dict[str, str]:
    unique = [
        set(id_columns(table)) | (set(tables[1 - at]) - set(table))
        for at, table in enumerate(tables)
    ]
    both = tables[0] | tables[1]
    known = unique[0] & unique[1] if ids is None else set(id_columns(both, ids))
    kinds = {name: "id" if name in known else "feature" for table in tables for name in table}
    return (
        kinds
        | dict.fromkeys(known_names(both, groups), "group")
        | ({target: "target"} if target else {})
    )


def _row_of(key: str, tables: list[Table], more: dict[str, Any]) -> dict[str, Any]:
    columns = [table.get(key) for table in tables]
    facts = {
        name.format(side): None if column is None else fact(column)
        for name, fact in _FACTS.items()
        for side, column in _named(columns)
    }
    return {"column": key, **facts, "known in test": _known(*columns), **more}


def _check_shapes(tables: list[Table], shared: list[str], truth: NDArray[Any] | None) -> None:
    rows = len(tables[0][shared[0]])
    if truth is not None and len(truth) != rows:
        raise ValueError(f"there are {len(truth)} targets for {rows} rows; expected one for each")
    for key in shared:
        shapes = [table[key].shape[1:] for table in tables]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the rows of {key!r} have shape {shapes[0]} in train but {shapes[1]} in test: "
                "reshape them to one shape, or leave the column out"
            )


def _known(train: NDArray[Any] | None, test: NDArray[Any] | None) -> float | None:
    """The fraction of test's values that are in train, for names and whole numbers."""
    if train is None or test is None or train.ndim > 1 or train.dtype.kind not in "iubUSO":
        return None
    known = set(train.tolist())
    return sum(value in known for value in test.tolist()) / max(1, len(test))


def _together(tables: list[Table]) -> Any:
    """The sets of columns that are missing together, the most frequent first."""
    found: dict[str, dict[str, Any]] = {}
    for side, table in _named(tables):
        flat = [name for name, column in table.items() if column.ndim == 1]
        if not flat or not len(table[flat[0]]):
            continue
        absent = np.stack([is_missing(table[name]) for name in flat], axis=1)
        patterns, counts = np.unique(absent, axis=0, return_counts=True)
        for pattern, count in zip(patterns, counts.tolist(), strict=True):
            names = ", ".join(name for name, gone in zip(flat, pattern, strict=True) if gone)
            row = {"missing": names, "in train": 0, "in test": 0}
            found.setdefault(names, row)[f"in {side}"] = count
    found.pop("", None)  # rows in which nothing is missing
    schema = dict(zip(("missing", "in train", "in test"), (str, int, int), strict=True))
    ordered = sorted(found.values(), key=lambda row: -row["in train"] - row["in test"])
    return polars_for("look").DataFrame(ordered, schema=schema)


def _named(tables: Sequence[Any]) -> list[tuple[str, Any]]:
    return list(zip(("train", "test"), tables, strict=True))


def _infinite(column: NDArray[Any]) -> int:
    return int(np.isinf(column).sum()) if np.issubdtype(column.dtype, np.inexact) else 0


_FACTS: dict[str, Callable[[NDArray[Any]], Any]] = {
    "{} dtype": lambda column: f"{column.dtype} {column.shape}",
    "missing in {}": lambda column: int(is_missing(column.reshape(-1)).sum()),
    "infinite in {}": _infinite,
}


def _balance(classes: NDArray[Any]) -> dict[str, Any]:
    """The number and the fraction of rows of each class, and of missing ones."""
    absent = is_missing(classes)
    values, counts = np.unique(classes[~absent], return_counts=True)
    named, rows = values.tolist(), counts.tolist()
    if absent.any():
        named, rows = [*named, None], [*rows, int(absent.sum())]
    return {"class": named, "rows": rows, "part": [count / len(classes) for count in rows]}


def _bars(
    axes: Any, names: Any, values: Any, title: str, shift: float = 0.0, color: str = "C0"
) -> None:
    axes.set_title(title, fontsize=9)
    shown = [(str(n), v) for n, v in zip(names, values, strict=True) if v is not None]
    if not shift:
        shown = sorted(shown, key=lambda pair: -pair[1])
    shown = shown[:_MOST][::-1]
    if not shown:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "nothing", ha="center")
        return
    places = range(len(shown))
    height = 0.4 if shift else 0.8
    axes.barh([place + shift for place in places], [v for _, v in shown], height, color=color)
    axes.set_yticks(places, [n if len(n) <= 24 else f"{n[:21]}..." for n, _ in shown], fontsize=8)
