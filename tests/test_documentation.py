from __future__ import annotations

import re
import shlex
import sys
import textwrap
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import _reference
import pytest
from pages import run_page

import batteries
from batteries._foreign import Most
from batteries._rundir import history, record, scores
from batteries.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/README.md")]
PAGES = [page for page in PAGES if page.parent.name != "reference"]  # `make docs` writes these
PAGES += [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks/README.md"]


# How many blocks of a page nobody can run here: what installs, and what needs a cluster.
LEFT_OUT = {
    "docs/start.md": 1,
    "docs/coming-from.md": 1,
    "docs/howto/disk-full.md": 2,
    "docs/howto/kubernetes-torchrun.md": 1,
    "docs/howto/slurm-kaggle.md": 1,
    "docs/report.md": 1,
    "docs/runs.md": 1,
}

# What the reader of a how-to page has already.
BEFORE = """
import types
import numpy as np, torch
from sklearn.metrics import accuracy_score
from batteries import *
from batteries import distributed
from batteries.data import DataLoader
from batteries._modules import unwrap
from batteries.splits import check_folds, fold_indices, make_folds
seed_all(42)
device, num_epochs = torch.device("cpu"), 1
targets, patients, images = np.arange(60) % 2, np.arange(60), np.arange(60)
data = torch.utils.data.TensorDataset(torch.eye(8), torch.arange(8) % 2)
loader, valid_set = DataLoader(data, 2, shuffle=True), data
valid_loader = DataLoader(data, 2)
model = torch.nn.Linear(8, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
manager = CheckpointManager("runs/page/checkpoints")
guard = types.SimpleNamespace(requested=False, exit_code=75)
"""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_the_pages(page: Path) -> None:
    """Every block of a page runs, in an empty directory, in the order of the page."""
    names: dict[str, object] = {}
    if page.name not in ("start.md", "tutorial.md", "README.md"):
        exec(compile(BEFORE, "before", "exec"), names)
    skipped = run_page(page, names, commands=ROOT / "docs" in page.parents)
    assert len(skipped) == LEFT_OUT.get(str(page.relative_to(ROOT)), 0)


COMMANDS = [
    line.split("#")[0].split()[1:]
    for page in PAGES
    for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), re.DOTALL)
    for line in block.splitlines()
    if line.startswith("batteries ")
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_commands_of_the_pages(words: list[str]) -> None:
    """Every command line of ours in the pages has a command's own arguments and options."""
    words = shlex.split(" ".join(words[: words.index(">>")] if ">>" in words else words))
    Path("runs/digits/003/checkpoints").mkdir(parents=True)
    for name in ("a.csv", "b.parquet", "runs/digits/003/checkpoints/best.pth"):
        Path(name).touch()
    command = main.commands[words[0]]
    command.make_context(words[0], words[1:]).close()


def anchors_of(page: Path) -> set[str]:
    """The names by which links find the headings of a page."""
    text = page.read_text()
    if included := re.match(r"```{include} (.+)", text):
        return anchors_of(page.parent / included[1])
    text = re.sub(r"(?ms)^```.*?^```$", "", text)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every link to a file of the project leads to one, and to a heading that it has."""
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", page.read_text())
    targets = [(page.parent / link if link else page, anchor) for link, anchor in links]
    assert [target for target, _ in targets if not target.exists()] == []
    dead = [
        (target.name, anchor)
        for target, anchor in targets
        if anchor and target.suffix == ".md" and anchor not in anchors_of(target)
    ]
    assert dead == []


def test_the_readme_is_short() -> None:
    """The README has at most 100 lines."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


def lines_of(text: str, width: int) -> int:
    shown = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", text)
    return len(textwrap.wrap(shown, width)) or 1


def height_of_table(rows: list[str]) -> float:
    cells = [row.strip("| ").split(" | ") for row in rows if not row.startswith("|--")]
    longest = [max(map(len, column)) for column in zip(*cells, strict=True)]
    widths = [max(12, 104 * each // max(sum(longest), 104)) for each in longest]
    return 24 + sum(9 + 24 * max(map(lines_of, row, widths)) for row in cells)


def screens_of(page: Path) -> float:
    """The height of a page, in screens of 1280 x 900 pixels, estimated from its source.

    The pixels are those of the site in Chromium. For the pages of docs/howto/, the result differed
    from the measured height by less than 0.07 screens.
    """
    text = re.sub(r"<!--.*-->\n", "", page.read_text())
    height = 0.0
    for part in re.findall(r"(?s:^```.*?^```$)|(?:^(?!```).+\n)+", text, re.MULTILINE):
        lines = part.splitlines()
        if part.startswith("```"):
            height += 36 + 19.5 * (len(lines) - 2)
        elif part.startswith("#"):
            height += 16 + 50 * lines_of(part, 40) if part.startswith("# ") else 60
        elif part.startswith("|"):
            height += height_of_table(lines)
        elif part.startswith("!["):
            height += 436
        elif re.match(r"- |1\. ", part):
            height += 12 + sum(4 + 24 * lines_of(line, 100) for line in lines)
        else:
            height += 12 + 24 * lines_of(part, 98)
    return height / 900


@pytest.mark.parametrize("page", [*ROOT.glob("docs/howto/*.md")], ids=lambda page: page.stem)
def test_a_how_to_page_is_short(page: Path) -> None:
    """A how-to page is at most a screen and a half."""
    assert round(screens_of(page), 1) <= 1.5


def test_make_targets_exist() -> None:
    """Every `make` command in the pages is a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    commands = {
        name for page in PAGES for name in re.findall(r"^make (\w+)", page.read_text(), re.M)
    }
    assert {"demo", "test", "bench"} <= commands
    assert all(re.search(rf"^{name}:", makefile, re.MULTILINE) for name in commands)


def kind_told(kind: Any) -> str:
    """What `check` asks for, in words."""
    if isinstance(kind, tuple) and not isinstance(kind, Most):
        return f"{kind_told(kind[1])}, or null"
    if isinstance(kind, Most):
        counted: dict[Any, str] = {str: "characters", dict: "names", list: "items"}
        each = f"; each a {kind_told(kind.each)}" if kind.each is not object else ""
        return f"{kind_told(kind.type)} of at most {kind.number:,} {counted[kind.type]}{each}"
    words: dict[Any, str] = {
        str: "text", int: "whole number", float: "finite number", bool: "true or false",
        dict: "names and values", list: "list",
    }  # fmt: skip
    return words[kind]


def rows_of(schema: dict[str, Any], place: str = "") -> list[str]:
    rows = []
    for name, kind in schema.items():
        if isinstance(kind, list):
            rows += rows_of(kind[0], f"{place}{name}[].")
        else:
            rows.append(f"| `{place}{name}` | {kind_told(kind)} |")
    return rows


@pytest.mark.parametrize("module", [record, history, scores], ids=lambda module: module.NAME)
def test_the_page_of_files_has_what_is_checked(module: Any) -> None:
    """The table of each file of a run is what its reader holds the file against."""
    text = (ROOT / "docs/files.md").read_text().split(f"### `{module.NAME}`\n\n")[1]
    table = "\n".join(["| name | kind |", "|---|---|", *rows_of(module.SCHEMA)])
    assert text.partition("\n\n")[0] == table


# ---------------------------------------------------------------- the reference


def test_every_public_name_is_in_the_reference() -> None:
    """The reference has each public name of the package and of its rooms."""
    entries = {name for names in _reference.rooms().values() for name in names}
    rooms = {name for name in batteries.__all__ if isinstance(getattr(batteries, name), ModuleType)}
    public = {name for room in rooms for name in getattr(batteries, room).__all__}
    assert entries == public | set(batteries.__all__) - rooms
    listed = re.findall(
        r"^reference/(\w+)$", (ROOT / "docs/reference.md").read_text(), re.MULTILINE
    )
    assert set(listed) == rooms | {"batteries"}


def test_stars_in_docstrings() -> None:
    """A star stands in code, or before the name of an argument. Elsewhere it begins emphasis."""
    for room, names in _reference.rooms().items():
        for value in (getattr(sys.modules[room], name) for name in names):
            methods = vars(value).values() if isinstance(value, type) else ()
            own = [value, *(part for part in methods if isinstance(part, FunctionType | property))]
            for part in own if value.__module__ == room else ():
                text = re.sub(r"(?m)^ *(>>>|\.\.\.).*", "", part.__doc__ or "")
                text = re.sub(r"(?m)^ +\*\*?\w+:|`[^`]*`", "", text)
                assert not re.search(r"(^|\s|\")\*\S", text), part


def test_every_message_is_in_the_index() -> None:
    """Each error that the source raises with a text of its own is in the index of messages."""
    found = {(module, line) for module, line, _, _ in _reference.messages()}
    for path in (ROOT / "src/batteries").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT / "src/batteries").with_suffix("").parts)
        raised = r"raise (\w+(?:Error|Exception))\(\s*f?[\"']([^{}\"']*)"
        for match in re.finditer(raised, path.read_text()):
            line = path.read_text().count("\n", 0, match.start()) + 1
            known = (module.removesuffix(".__init__"), line) in found
            assert known or not re.search("[a-z]{2}", match[2]), f"{path}:{line}"


def test_messages_that_are_put_together() -> None:
    """Texts that reach an error by a name, a list or a function are in the index, too."""
    texts = " ".join(text for *_, text in _reference.messages())
    for told in ("it is a sparse file", "samples are missing", "the ranks are not doing the same"):
        assert told in texts


def test_methods_of_private_bases() -> None:
    """The reference shows the methods that a public class has from a private one."""
    assert ":inherited-members:" in _reference.page_of("batteries.averaging", ["EMA"])
    assert ":inherited-members:" not in _reference.page_of("batteries.averaging", ["Soup"])


def test_the_page_of_variables() -> None:
    """Each environment variable that the source names where it reads some is in the page."""
    page = (ROOT / "docs/environment.md").read_text()
    for path in (ROOT / "src/batteries").rglob("*.py"):
        text = path.read_text()
        names = re.findall(
            r"(?:environ|getenv|env|said|number)\W{1,6}\"([A-Z][A-Z0-9_]{3,})\"", text
        )
        assert [name for name in names if f"`{name}`" not in page] == [], path
