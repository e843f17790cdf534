"""Run the blocks of a page as its reader would: in order, in one directory and one namespace.

What a block is for stands behind its language. Sybil reads the pages and runs the Python.

- `python` runs. Where it begins with `>>>`, its output is compared.
- `python file=train.py` writes that file, and `diff file=train.py` changes it.
- `bash` runs `python`, `torchrun`, `batteries`, `ls` and `rm -r`, one command a line.
- `text output` is what the `bash` block before it prints.
- A block behind `<!-- skip: next "why" -->` does not run, and is counted.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import SkipTest

import warm
from sybil import Document, Example, Region
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser


def run_page(page: Path, names: dict[str, Any], *, commands: bool = True) -> list[str]:
    """Run all blocks of a page, or its Python alone; returns why some were left out."""
    parsers: list[Any] = [PythonCodeBlockParser(), SkipParser(), *([_Files()] if commands else [])]
    document = Document.parse(str(page), *parsers)
    document.namespace.update(names)
    skipped = []
    for example in document.examples():
        try:
            example.evaluate()
        except SkipTest as why:
            skipped.append(str(why))
    return skipped


class _Files(CodeBlockParser):
    """Blocks that make files, and those that are commands."""

    language = "bash"

    def __init__(self) -> None:
        super().__init__()
        self._output = ""

    def __call__(self, document: Document) -> Iterable[Region]:
        for region in self.lexers(document):
            language, *options = region.lexemes["arguments"].split()
            if language == "bash" or (options and language in ("python", "diff", "text")):
                region.parsed = language, options[:1], str(region.lexemes["source"])
                region.evaluator = self.evaluate
                yield region

    def evaluate(self, example: Example) -> str | None:
        language, options, source = example.parsed
        if language == "bash":
            self._output = "".join(map(_run, source.splitlines()))
        elif language == "text":
            return _difference(source, self._output)
        else:
            file = Path(options[0].removeprefix("file="))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source if language == "python" else _changed(file.read_text(), source))
        return None


def _changed(text: str, diff: str) -> str:
    """A text after a diff, whose parts begin with "@@" and stand in it once."""
    for part in diff.split("@@\n"):
        lines = part.splitlines(keepends=True)
        before = "".join(line[1:] or line for line in lines if line[0] != "+")
        after = "".join(line[1:] or line for line in lines if line[0] != "-")
        assert text.count(before) == 1, f"stands there {text.count(before)} times:\n{before}"
        text = text.replace(before, after)
    return text


def _run(line: str) -> str:
    words = shlex.split(line, comments=True)
    if not words:
        return ""
    if words[:2] == ["rm", "-r"]:
        shutil.rmtree(words[2])
        return ""
    if words[0] == "ls":
        return "".join(f"{path.name}\n" for path in sorted(Path(words[1]).iterdir()))
    commands = {"python": [sys.executable], "batteries": [sys.executable, "-m", "batteries"]}
    command = (
        [*commands[words[0]], *words[1:]] if words[0] in commands else warm.torchrun(*words[1:])
    )
    assert words[0] in (*commands, "torchrun"), f"nobody knows how to run {line}"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = warm.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{line}: {done.stderr}"
    return "".join(warm.told_by(done.stdout.splitlines(keepends=True)))


def _difference(expected: str, found: str) -> str | None:
    same = expected.split() == found.split()
    return None if same else f"expected:\n{expected}\nfound:\n{found}"
