from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from batteries._foreign import Most
from batteries._rundir import history, record, scores
from batteries.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/README.md")]
PAGES += [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks/README.md"]


def test_the_programs_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    """The README's programs run in an empty directory, and resume when run again."""
    programs = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert programs
    for program in programs * 2:
        exec(compile(program, "README.md", "exec"), {})
    files = sorted(path.name for path in Path("runs/line").iterdir())
    assert len(files) == 3 + 3
    assert files[0] == "best.pth"
    assert "100%" in capsys.readouterr().err


# What the reader of a page has already, when a block begins.
BEFORE = """
import types
import numpy as np, torch
from sklearn.metrics import accuracy_score
from batteries import *
from batteries import distributed
from batteries.data import DataLoader
from batteries._modules import unwrap
from batteries.splits import check_folds, fold_indices, make_folds
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
NOT_RUN = "<!-- not run: "  # and why, in the line before a block


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_programs_of_the_pages(page: Path) -> None:
    """Every block of Python in the pages runs, in an empty directory, after what the reader has."""
    for program in re.findall(r"(?<!-->\n)```python\n(.*?)```", page.read_text(), re.DOTALL):
        names: dict[str, object] = {}
        exec(compile(BEFORE, "before", "exec"), names)
        exec(compile(program, page.name, "exec"), names)


def test_blocks_that_are_not_run() -> None:
    """Blocks of Python that are marked as not run are counted here: there are none."""
    assert sum(page.read_text().count(NOT_RUN) for page in PAGES) == 0


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every link to a file of the project leads to one."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_tree_of_the_readme() -> None:
    """The README's file tree names every public module."""
    tree = (ROOT / "README.md").read_text().split("src/batteries/\n")[1].split("examples/")[0]
    rooms = (path for path in (ROOT / "src/batteries").iterdir() if path.suffix in ("", ".py"))
    public = [path.stem for path in rooms if not path.name.startswith("_")]
    assert sorted(re.findall(r"^  (\w+)[./]", tree, re.MULTILINE)) == sorted(public)


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
        counted: dict[Any, str] = {str: "letters", dict: "names", list: "items"}
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
