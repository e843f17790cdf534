"""Tables for the terminal, or as CSV, JSON, Markdown or LaTeX."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import click

from batteries._digits import shown
from batteries._foreign import printable

_WIDE = 10_000  # columns, if there is no terminal
_LONG = 2000  # letters of a cell
_LATEX = str.maketrans({each: f"\\{each}" for each in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"
})  # fmt: skip
_HEADINGS = {"seconds": "duration", "bytes": "size"}
Rows = Sequence[Mapping[str, Any]]


def print_table(
    title: str,
    rows: Rows,
    spare: Sequence[str] = (),
    exact: Collection[str] = (),
    with_empty: bool = False,
) -> list[str]:
    """Print rows. Spare columns are left out if the terminal is too narrow.

    Args:
        spare: The columns to leave out, the first ones first.
        exact: Columns whose numbers are shown in full, such as learning rates.
        with_empty: Whether columns without values are shown.

    Returns:
        The names of the columns that are left out.
    """
    columns = _cells(rows, list(dict.fromkeys(name for row in rows for name in row)), exact)
    if not with_empty:
        columns = {name: cells for name, cells in columns.items() if any(cells[1:])}
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDE
    widths = {name: max(map(_width, cells)) for name, cells in columns.items()}
    left_out = []
    for name in [name for name in spare if name in columns]:
        if sum(widths.values()) + 2 * len(widths) - 2 > room:
            del columns[name], widths[name]
            left_out.append(name)
    numbers = {name for name in columns if any(_is_number(row.get(name)) for row in rows)}
    click.echo("".join(f"{printable(line)}\n" for line in title.split("\n")), nl=False)
    if not rows:
        return []
    lines = [
        [_padded(cells[line], widths[name], name in numbers) for name, cells in columns.items()]
        for line in range(len(rows) + 1)
    ]
    lines.insert(1, ["-" * width for width in widths.values()])
    for line in lines:
        click.echo("  ".join(line).rstrip())
    return left_out


def dumped(value: Any) -> str:
    """Values as JSON, with null for numbers that are not finite."""
    plain = json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)
    return json.dumps(plain, indent=1)


def as_csv(rows: Rows, names: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writerow({name: printable(name) for name in names})
    for row in rows:
        texts = {name: printable(each) for name, each in row.items() if isinstance(each, str)}
        writer.writerow({**row, **texts})
    return text.getvalue()


def as_markdown(rows: Rows, names: Sequence[str], exact: Collection[str] = ()) -> str:
    columns = _cells(rows, names, exact)
    cells = zip(*columns.values(), strict=True)
    lines = [[cell.replace("|", "\\|") for cell in line] for line in cells]
    lines.insert(1, ["---:" if _is_right(rows, name) else "---" for name in columns])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_latex(rows: Rows, names: Sequence[str], exact: Collection[str] = ()) -> str:
    columns = _cells(rows, names, exact)
    cells = zip(*columns.values(), strict=True)
    lines = [" & ".join(cell.translate(_LATEX) for cell in line) + r" \\" for line in cells]
    sides = "".join("r" if _is_right(rows, name) else "l" for name in columns)
    head, *body = lines
    inside = "\n".join([r"\hline", head, r"\hline", *body, r"\hline"])
    return f"\\begin{{tabular}}{{{sides}}}\n{inside}\n\\end{{tabular}}\n"


def size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} B" if unit == "B" else f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _cells(rows: Rows, names: Sequence[str], exact: Collection[str]) -> dict[str, list[str]]:
    """The heading and the texts of each column."""
    found = {}
    for name in names:
        values = [row.get(name) for row in rows]
        texts = [printable(text)[:_LONG] for text in _texts(name, values, name in exact)]
        found[name] = [printable(_HEADINGS.get(name, name))[:_LONG], *texts]
    return found


def _texts(name: str, values: Sequence[Any], exact: bool) -> list[str]:
    if name in ("seconds", "bytes"):
        show = size if name == "bytes" else duration
        return ["" if value is None else show(value) for value in values]
    if name in ("started", "stopped"):
        return [str(value or "")[:16].replace("T", " ") for value in values]
    floats = [value for value in values if isinstance(value, float) and not exact]
    texts = iter(shown(floats, sign="+" if name.endswith("- validation") else ""))
    return [
        "" if value is None else f"{value:.12g}" if exact and isinstance(value, float)
        else next(texts) if isinstance(value, float) else str(value)
        for value in values
    ]  # fmt: skip


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_right(rows: Rows, name: str) -> bool:
    return bool(rows) and _is_number(rows[0].get(name))


def _width(text: str) -> int:
    """The width in a terminal."""
    wide = sum(unicodedata.east_asian_width(each) in "WF" for each in text)
    return len(text) + wide


def _padded(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space
