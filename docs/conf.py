"""How Sphinx makes the site: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import _reference

import batteries

project = "batteries"
version = release = batteries.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_site"]
html_theme = "furo"
html_title = f"batteries {version}"
html_copy_source = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_dark_style = "github-dark"
html_show_sphinx = False
html_search_scorer = str(Path(__file__).with_name("_scorer.js"))
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"ArrayLike": "ArrayLike"}  # numpy's, which has private types in it
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_rtype = False
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
napoleon_use_ivar = True
# Types such as bytes are also names of attributes.
suppress_warnings = ["config.cache", "ref.python"]

_reference.write()


def _lines(_app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Markdown's tables in docstrings as reStructuredText has them, and types in short."""
    lines[:] = [_reference.short(line) if ":vartype" in line else line for line in lines]
    for start in [i for i, line in enumerate(lines) if line.startswith("|---")]:
        first = start - 1
        end = next(
            (i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines)
        )
        rows = [line.strip("|").split(" | ") for line in lines[first:end] if "|---" not in line]
        table = [".. list-table::", "   :header-rows: 1", ""]
        for row in rows:
            cells = [cell.strip() for cell in row]
            table += [f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(cells)]
        lines[first:end] = [*table, ""]
        return


def _signature(*event: Any) -> tuple[str | None, ...]:
    """The types of a signature in short: the last two, its arguments and what it returns."""
    return tuple(part and _reference.short(part) for part in event[-2:])


def _skip(_app: Any, _what: str, _name: str, obj: Any, *_event: Any) -> bool | None:
    """A named tuple's fields stand in its docstring, without "Alias for field number 0"."""
    return str(getattr(obj, "__doc__", "")).startswith("Alias for field number") or None


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _lines)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-skip-member", _skip)
