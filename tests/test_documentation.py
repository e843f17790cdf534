from __future__ import annotations

import re
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/*.md")), ids=lambda page: page.name)
def test_the_programs_of_the_pages(page: Path) -> None:
    """What is a program of its own in a page, with its imports, runs in an empty directory."""
    for program in re.findall(r"```python\n((?:from|import) .*?)```", page.read_text(), re.DOTALL):
        exec(compile(program, page.name, "exec"), {})


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
