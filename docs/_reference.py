"""Write the pages of the reference that the source itself has: `python docs/_reference.py`."""

from __future__ import annotations

import ast
import dataclasses
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

import batteries
from batteries import cli

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/batteries"
OUT = ROOT / "docs/reference"  # not under version control
ROOMS = sorted(name for name in batteries.__all__ if (SOURCE / name / "__init__.py").exists())


def rooms() -> dict[str, list[str]]:
    """The public names of the package and of each room."""
    of_rooms = {
        f"batteries.{room}": list(getattr(batteries, room).__all__) for room in [*ROOMS, "progress"]
    }
    elsewhere = {name for names in of_rooms.values() for name in names} | {*ROOMS, "progress"}
    return {"batteries": [n for n in batteries.__all__ if n not in elsewhere], **of_rooms}


def page_of(room: str, names: list[str]) -> str:
    """A page that Sphinx fills from the docstrings."""
    module = sys.modules[room]
    entries = []
    for name in names:
        value = getattr(module, name)
        kind = "class" if isinstance(value, type) else "function"
        if value.__module__ != room or value.__name__ != name:
            spelling = value.__module__ == room  # of the specification
            told = f"The same as `{value.__name__}`." if spelling else f"`{short(str(value))}`"
            entries.append(f".. py:data:: {room}.{name}\n\n   {told}")
        else:
            members = "\n   :members:" if kind == "class" and name != "tqdm" else ""
            bases = getattr(value, "__mro__", (value,))[1:]
            if members and any(base.__module__.startswith("batteries.") for base in bases):
                members += "\n   :inherited-members:"
            # The library alone makes objects that have private parts, or parts made by factories.
            parts = str(getattr(value.__init__, "__annotations__", ""))
            fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
            factories = [f for f in fields if f.default_factory is not dataclasses.MISSING]
            hidden = "()" if factories or re.search(r"\b_[a-zA-Z]", parts) else ""
            entries.append(f".. auto{kind}:: {room}.{name}{hidden}{members}")
    said = (module.__doc__ or "").partition("\n")[0]
    text = "\n\n".join(entries)
    return f"# {room}\n\n{said}\n\n```{{eval-rst}}\n{text}\n```\n"


def short(types: str) -> str:
    """Types as a program writes them: `NDArray[Any]` instead of numpy's own parts of it."""
    types = re.sub(r"~?\b(typing|collections\.abc|numpy)\.(?=\w)", "", types)
    types = re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", types)
    return re.sub(r"ndarray\[tuple\[Any, \.\.\.\], dtype(\[\w+\])\]", r"NDArray\1", types)


def command_page() -> str:
    """What the commands say of themselves with `--help`."""
    parts = ["# The command line\n\nEach command prints this text with `--help`.\n"]
    own = cli.main.context_settings
    for name in ["", *sorted(cli.main.commands)]:
        command: click.Command = cli.main.commands[name] if name else cli.main
        context = click.Context(command, info_name=f"batteries {name}".strip(), **own)
        told = command.get_help(context)
        parts.append(f"## `batteries {name}`".replace(" `", "`", 0) + f"\n\n```text\n{told}\n```\n")
    return "\n".join(parts).replace("## `batteries `", "## `batteries`")


def messages() -> Iterator[tuple[str, int, str, str]]:
    """Each error and warning in the source: module, line, kind and text."""
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if isinstance(node.func, ast.Call) and ast.unparse(node.func) == "type(error)":
                name = "OSError"
            kind = "warning" if name == "warn" else name
            if kind != "warning" and not re.fullmatch(r"[A-Z]\w*(Error|Exception)", kind):
                continue
            texts = [max((text_of(part) for part in node.args), key=len)]
            if not re.search("[a-z]{2}", texts[0]):
                texts = list(texts_by_name(node, tree))
            for text in texts:
                if re.search("[a-z]{2}", text):
                    yield module, node.lineno, kind, text


def texts_by_name(call: ast.Call, tree: ast.Module) -> Iterator[str]:
    """The texts that the names in a call stand for: assigned, appended or returned ones."""
    names = {part.id for part in ast.walk(call) if isinstance(part, ast.Name)}
    functions = [each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef)]
    own = [each for each in functions if each.lineno <= call.lineno <= (each.end_lineno or 0)]
    called = [each for each in functions if each.name in names]
    appends = rf"({'|'.join(map(re.escape, names))})\.append"
    for scope in (*own, ast.Module(tree.body, []), *called):
        nodes: Iterable[ast.AST] = scope.body if isinstance(scope, ast.Module) else ast.walk(scope)
        for node in nodes:
            if isinstance(node, ast.Return) and scope in called and node.value:
                yield text_of(node.value)
            elif isinstance(node, ast.Assign | ast.AugAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(ast.unparse(target) in names for target in targets):
                    yield text_of(node.value)
            elif isinstance(node, ast.Call) and re.fullmatch(appends, ast.unparse(node.func)):
                yield text_of(node.args[0])


def text_of(node: ast.expr) -> str:
    """A text with `…` for what is only known when it is said."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            "…" if isinstance(part, ast.FormattedValue) else text_of(part) for part in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (text_of(node.left) or "…") + (text_of(node.right) or "…")
    if isinstance(node, ast.IfExp):
        return f"{text_of(node.body) or '…'} / {text_of(node.orelse) or '…'}"
    return ""


def message_page() -> str:
    """An index of all messages, by the room that says them."""
    by_room: dict[str, list[str]] = {}
    for module, _, kind, text in messages():
        cell = re.sub(r"\s+", " ", text).replace("|", "\\|").replace("`", "'").strip()
        room = module.split(".")[0].replace("__init__", "batteries")
        by_room.setdefault(room, []).append(f"| `{kind}` | `{cell}` |")
    parts = [
        "# Messages\n\nThis page lists the texts of errors and warnings. `…` stands for names, "
        "numbers, paths and other texts. A ` / ` with spaces stands between two texts of which a "
        "message has one. A message says where the problem is, what was "
        "found, what was expected and what to do. Some texts, above all short ones, are only a "
        "part of a message. To find a message, search for a few of its words.\n"
    ]
    for room in sorted(by_room, key=lambda name: name.lstrip("_")):
        rows = "\n".join(sorted(set(by_room[room])))
        parts.append(f"## {room.lstrip('_')}\n\n| kind | message |\n|---|---|\n{rows}\n")
    return "\n".join(parts)


def write() -> None:
    """Write all of them."""
    OUT.mkdir(exist_ok=True)
    for room, names in rooms().items():
        (OUT / f"{room.rpartition('.')[2]}.md").write_text(page_of(room, names))
    (OUT / "cli.md").write_text(command_page())
    (OUT / "messages.md").write_text(message_page())


if __name__ == "__main__":
    write()
