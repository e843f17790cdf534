"""What the tests found out about each library, as a page: `pytest tests/ecosystem --page=FILE`.

`@pytest.mark.beside("h5py")` says which library a test is about. `package` is what pip calls it,
`remedy` what a user has to do, `cannot` what does not work with any remedy.
"""

from __future__ import annotations

import platform
import sqlite3
from collections import defaultdict
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import vision

HEAD = """# Beside other libraries

This page has the results of the tests in `tests/ecosystem`. `make ecosystem` installs the
libraries, runs the tests and writes this page. Python {python}, torch {torch}.

- **works**: the last column says what was tested.
- **with a remedy**: it works if you do what the last column says. That column also says what does
  not work, or was not tried.
- **cannot**: a part of it does not work. The last column says which part.
- **not here**: the tests could not run.

| library | version | result | why |
| --- | --- | --- | --- |
"""


@dataclass
class Library:
    package: str
    remedy: str = ""
    cannot: str = ""
    outcomes: set[str] = field(default_factory=set)
    sentences: list[str] = field(default_factory=list)
    skipped: str = ""

    def row(self, name: str) -> str:
        """Of the table; the worst outcome counts."""
        why = " ".join(dict.fromkeys(self.sentences))
        if "failed" in self.outcomes:
            result = "fails"
        elif "passed" not in self.outcomes:
            result, why = "not here", self.skipped
        else:
            result = "with a remedy" if self.remedy else "cannot" if self.cannot else "works"
            why = " ".join(filter(None, [self.remedy, self.cannot])) or why
        return f"| {name} | {version_of(self.package)} | {result} | {why.replace('|', '/')} |\n"


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return sqlite3.sqlite_version if package == "sqlite3" else "-"


class Page:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._libraries: dict[str, Library] = {}
        self._tests: dict[str, list[str]] = defaultdict(list)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            sentence = (getattr(item, "function", item).__doc__ or "").partition("\n\n")[0]
            for mark in item.iter_markers("beside"):
                (name,) = mark.args
                package = mark.kwargs.get("package", name)
                library = self._libraries.setdefault(name, Library(package))
                library.remedy = library.remedy or mark.kwargs.get("remedy", "")
                library.cannot = library.cannot or mark.kwargs.get("cannot", "")
                library.sentences.append(" ".join(sentence.split()))
                self._tests[item.nodeid].append(name)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            for name in self._tests[report.nodeid]:
                self._libraries[name].outcomes.add(report.outcome)
                self._libraries[name].skipped = reason(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:  # a whole file, whose marks are not known
            name = Path(report.nodeid).stem.removeprefix("test_")
            self._libraries[name] = Library(name, skipped=reason(report))

    def pytest_sessionfinish(self) -> None:
        head = HEAD.format(python=platform.python_version(), torch=version_of("torch"))
        rows = sorted(self._libraries.items(), key=lambda pair: pair[0].lower())
        self._path.write_text(head + "".join(library.row(name) for name, library in rows))


def reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return ""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--page", type=Path, help="the page that the run writes")


def pytest_configure(config: pytest.Config) -> None:
    vision.prepare()
    config.addinivalue_line("markers", "beside(name, package, remedy, cannot): see conftest.py")
    if (path := config.getoption("--page", None)) is not None:
        config.pluginmanager.register(Page(path.absolute()))
