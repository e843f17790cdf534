"""Correlations between the predictions of models. Models that differ are worth blending."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from batteries._arrays import as_names
from batteries._digits import shown
from batteries._files import PathLike, write_whole
from batteries._optional import import_optional
from batteries._spellings import hints
from batteries.blend._models import as_models
from batteries.blend._ranks import ranks


class Correlation(NamedTuple):
    """The correlations of models. `print` shows a table.

    >>> print(Correlation(["a", "b"], np.array([[1.0, 0.5], [0.5, 1.0]])))
            a       b
    a  1.0000  0.5000
    b  0.5000  1.0000

    Attributes:
        names: The names of the models.
        values: The correlations, (models, models).
    """

    names: list[str]
    values: NDArray[np.float64]

    def __str__(self) -> str:
        cells = [["", *self.names]]
        texts = iter(shown(self.values.ravel().tolist()))
        cells += [[name, *(next(texts) for _ in self.names)] for name in self.names]
        left, *widths = (max(map(len, column)) for column in zip(*cells, strict=True))
        lines = []
        for name, *others in cells:
            right = [cell.rjust(width) for cell, width in zip(others, widths, strict=True)]
            lines.append("  ".join([name.ljust(left), *right]))
        return "\n".join(lines)

    def plot(self, path: PathLike) -> None:
        """Write a picture of the table as a PNG file, whole or not at all.

        Raises:
            OSError: The file cannot be written.
            ModuleNotFoundError: matplotlib is not installed.
        """
        figures = import_optional("matplotlib.figure", for_="Correlation.plot")
        size = 2 + 0.6 * len(self.names)
        figure = figures.Figure(figsize=(size + 1, size), layout="constrained")
        axes = figure.subplots()
        lowest = min(float(np.nanmin(self.values, initial=1.0)), 0.9)
        image = axes.imshow(self.values, vmin=lowest, vmax=1)
        places = range(len(self.names))
        texts = iter(shown(self.values.ravel().tolist(), least=3))
        axes.set_xticks(places, self.names, rotation=45, ha="right")
        axes.set_yticks(places, self.names)
        for row in places:
            for column in places:
                color = "white" if self.values[row, column] < (1 + lowest) / 2 else "black"
                axes.text(column, row, next(texts), ha="center", va="center", color=color)
        figure.colorbar(image)
        with write_whole(path) as file:
            figure.savefig(file, format="png", dpi=120)


@hints
def correlation(
    predictions: Any,
    *more: Any,
    names: Sequence[str] | None = None,
    kind: Literal["pearson", "spearman"] = "pearson",
) -> Correlation:
    """The correlations between the predictions of models.

    >>> print(correlation([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]], names=["a", "b"]))
             a        b
    a   1.0000  -1.0000
    b  -1.0000   1.0000

    Args:
        predictions, more: As for `mean`. All numbers of a model become one column. If the numbers
            of a model are all equal, its correlations are NaN, also that with itself.
        names: The names of the models. Default: the names in `predictions`, or "model 0" and so on.
        kind: "pearson", or "spearman" (the correlation of the ranks).

    Raises:
        TypeError: As for `mean`.
        ValueError: As for `mean`; no rows; not one name for each model; or an unknown kind.
    """
    models = as_models(predictions, more)
    models.refuse()
    if not models.arrays[0].size:
        raise ValueError("there are no rows to correlate")
    if kind not in ("pearson", "spearman"):
        raise ValueError(f"kind is {kind!r}; expected 'pearson' or 'spearman'")
    names = None if names is None else list(map(str, as_names(names)))
    if names is not None and len(names) != len(models.arrays):
        raise ValueError(
            f"there are {len(names)} names for {len(models.arrays)} models; expected one for each"
        )
    flat = [array.reshape(-1) for array in models.arrays]
    columns = flat if kind == "pearson" else [ranks(column) for column in flat]
    part = np.concatenate(columns, dtype=np.float64).reshape(len(columns), -1)
    part -= part.mean(1, keepdims=True)
    products = part @ part.T
    scale = np.sqrt(np.diag(products))
    # Equal numbers have no correlation, but rounding gives them a small scale.
    scale[[column.min() == column.max() for column in flat]] = np.nan
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.clip(products / np.outer(scale, scale), -1, 1)
    return Correlation(models.keys if names is None else names, values)
