"""A first look, drawn on one page."""

from __future__ import annotations

from typing import Any

from batteries._files import PathLike, write_whole
from batteries._optional import import_optional

_MOST = 15  # bars of a panel


def draw(look: Any, path: PathLike) -> None:
    """Write the page of a `Look`, whole or not at all."""
    figures = import_optional("matplotlib.figure", for_="Look.plot")
    figure = figures.Figure(figsize=(11, 8), layout="constrained")
    panels = figure.subplots(2, 2)
    columns = look.columns
    _bars(
        *(panels[0, 0], columns["column"], columns["tells test"]),
        f"columns that differ between train and test (AUC {look.auc:.3f} ± {look.spread:.3f})",
    )
    _bars(
        *(panels[0, 1], columns["column"], columns["tells target"]),
        "how well one column predicts the target (AUC or R²)",
    )
    if look.missing is not None:
        for side, shift, color in (("train", 0.2, "C0"), ("test", -0.2, "C1")):
            rows = look.missing.head(_MOST)
            _bars(
                *(panels[1, 0], rows["missing"], rows[f"in {side}"]),
                "rows in which these columns are missing: train above, test below",
                shift=shift, color=color,
            )  # fmt: skip
    if look.classes is not None:
        rows = look.classes.sort("rows", descending=True)
        _bars(panels[1, 1], rows["class"], rows["part"], "the fraction of each class")
    with write_whole(path) as file:
        figure.savefig(file, format="png", dpi=110)


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
