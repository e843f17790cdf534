"""Tables for a terminal, as wide as it is."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from batteries._digits import shown
from batteries._foreign import printable
from batteries._optional import import_optional

_WIDE = 10_000  # columns, where there is no terminal


def print_table(
    title: str, rows: Sequence[Mapping[str, Any]], spare: Sequence[str] = ()
) -> list[str]:
    """Print rows; where they are too wide, without spare columns, which are returned."""
    tables = import_optional("rich.table", needs="rich", for_="a table (without it: --json, --csv)")
    console = import_optional("rich.console", needs="rich", for_="a table").Console(
        width=None if sys.stdout.isatty() else _WIDE, emoji=False
    )
    columns = {
        name: [_heading(name), *_column(name, [row[name] for row in rows])]
        for name in (rows[0] if rows else ())
    }
    columns = {name: cells for name, cells in columns.items() if any(cells[1:])}
    left_out = []
    gaps = [name for name in columns if name.endswith("- validation")]
    widths = {name: 3 + max(map(len, cells)) for name, cells in columns.items()}
    for name in [name for name in [*gaps, *spare] if name in columns]:
        if 1 + sum(widths.values()) > console.width:
            del columns[name], widths[name]
            left_out.append(name)
    table = tables.Table(title=_plain(title))
    for name, cells in columns.items():
        numbers = any(isinstance(row[name], int | float) for row in rows)
        table.add_column(_plain(cells[0]), justify="right" if numbers else "left", overflow="fold")
    for index in range(len(rows)):
        table.add_row(*(_plain(cells[index + 1]) for cells in columns.values()))
    console.print(table)
    return left_out


def _plain(text: str) -> Any:
    """A text of which no part is taken for colours, or reaches the terminal as a command."""
    return import_optional("rich.text", needs="rich", for_="a table").Text(printable(text))


def _heading(name: str) -> str:
    return "duration" if name == "seconds" else name


def _column(name: str, values: Sequence[Any]) -> list[str]:
    if name == "seconds":
        return [_shown(name, value) for value in values]
    floats = [value for value in values if isinstance(value, float)]
    texts = iter(shown(floats, sign="+" if name.endswith("- validation") else ""))
    return [next(texts) if isinstance(value, float) else _shown(name, value) for value in values]


def _shown(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "started":
        return str(value)[:16].replace("T", " ")
    if name == "seconds":
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
    return str(value)
