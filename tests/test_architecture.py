from __future__ import annotations

import ast
import doctest
import functools
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import GenericAlias
from typing import Any, get_origin, get_type_hints

import pytest
from torch.utils._device import _device_constructors

import batteries

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/batteries"
FILES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in SOURCE.rglob("*.py")
}
MODULES = sorted(FILES)
ROOMS = [name for name in MODULES if "_" not in name and name != "cli"]


def floors() -> list[str]:
    """The modules in the order of docs/architecture.md, top first."""
    text = (ROOT / "docs/architecture.md").read_text()
    plan = text.split("```")[1]
    return re.findall(r"^([\w.]+) ", plan, flags=re.MULTILINE)


def imports_of(module: str) -> set[str]:
    """The modules of this package that one imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        names = [alias.name for alias in getattr(node, "names", []) if isinstance(node, ast.Import)]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")[1:] if name.startswith("batteries.") else []
            # of batteries.checkpoint._read_outline.peek the longest part that is a module
            known = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
            found |= set([name for name in known if name in FILES][:1])
    return found


def test_warnings_have_the_line_of_the_program() -> None:
    """One function warns, so that no warning points into the library."""
    warning = {name for name in MODULES if "warnings.warn(" in FILES[name].read_text()}
    assert warning == {"_warnings"}


def test_the_plan_is_complete() -> None:
    """The architecture page lists every module, once."""
    assert sorted(floors()) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module: str) -> None:
    """A module imports only those that stand below it."""
    plan = floors()
    below = plan[plan.index(module) + 1 :]
    assert imports_of(module) <= set(below)


def test_table_of_contents() -> None:
    """`__init__` re-exports one name a line, `__all__` is the same names, sorted, and all load."""
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    [checking] = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in checking.body if isinstance(node, ast.ImportFrom)]
    assert all(len(node.names) == 1 for node in imports)
    assert sorted(node.names[0].asname or "" for node in imports) == sorted(batteries.__all__)
    assert batteries.__all__ == sorted(batteries.__all__)
    for node in imports:
        name = node.names[0].name
        room = name if node.module == "batteries" else f"{node.module}.{name}"
        assert getattr(batteries, name) is pkgutil.resolve_name(
            f"batteries.{room}".replace("batteries.batteries.", "batteries.")
        )
    with pytest.raises(AttributeError, match="module 'batteries' has no attribute 'nothing'"):
        batteries.nothing  # noqa: B018


def test_the_command_line_needs_no_torch() -> None:
    """`batteries --help` loads neither torch nor numpy, and a list of runs no torch."""
    Path("runs/001").mkdir(parents=True)
    Path("runs/001/run.json").write_text('{"id": "a", "sessions": [{"state": "finished"}]}')
    script = (
        "import batteries.cli, sys; print({'torch', 'numpy'} & set(sys.modules))\n"
        "batteries.cli.main(['--help'], standalone_mode=False)\n"
        "batteries.cli.main(['runs', 'runs'], standalone_mode=False)\n"
        "print({'torch'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.startswith("set()\nUsage: ")
    assert result.stdout.endswith("\nset()\n"), result.stderr


def public_names() -> dict[str, Any]:
    """What a user may hold, by where it is imported from: functions, classes and types."""
    found: dict[str, Any] = {}
    for room in ["batteries", *(f"batteries.{room}" for room in ROOMS)]:
        module = importlib.import_module(room)
        found |= {f"{room}.{name}": getattr(module, name) for name in module.__all__}
    return {name: value for name, value in found.items() if not inspect.ismodule(value)}


def test_every_other_module_is_private() -> None:
    """A module that a user may import has `__all__`; the name of each other one begins with "_"."""
    others = {name for name in MODULES if not any(part[0] == "_" for part in name.split("."))}
    assert others == {*ROOMS, "cli"}
    for name, value in public_names().items():
        assert not name.rpartition(".")[2].startswith("_")
        assert (value.__doc__ or "").strip(), name


def test_examples_import_public_names() -> None:
    """The programs that users copy, in the examples and on the pages, import no private name."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for path in [*(ROOT / "examples").rglob("*.py"), *pages]:
        assert not re.findall(r"(?:from|import) batteries[\w.]*\b_\w*", path.read_text()), path


@pytest.mark.parametrize(
    ("name", "value"),
    # On Python 3.10 dict[str, Any] is a class, too.
    [(n, v) for n, v in public_names().items() if inspect.isclass(v) and not get_origin(v)],
)
def test_types_are_imported_from_where_they_say(name: str, value: type) -> None:
    """A public class, and each class that it or a public function returns, says a public place."""
    place = f"{value.__module__}.{value.__qualname__}"
    assert pkgutil.resolve_name(place) is value
    assert "._" not in place, name


def types_in(node: ast.AST) -> Iterator[ast.expr | None]:
    """The types of a function, or of the public methods and attributes of a class."""
    if isinstance(node, ast.ClassDef):
        for member in node.body:
            yield from types_in(member)
    elif isinstance(node, ast.AnnAssign):
        if not ast.unparse(node.target).removeprefix("self.").startswith("_"):
            yield node.annotation
    elif isinstance(node, ast.FunctionDef) and (node.name[0] != "_" or node.name[-1] == "_"):
        yield node.returns
        yield from (each.annotation for each in ast.walk(node.args) if isinstance(each, ast.arg))
        for each in ast.walk(node):
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Attribute):
                yield from types_in(each)


def names_in(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


@functools.cache
def own_types() -> set[str]:
    """The names of our classes, and of our names for other types."""
    found = set()
    for node in chain.from_iterable(ast.parse(path.read_text()).body for path in FILES.values()):
        if isinstance(node, ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and not isinstance(node.value, ast.Call):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= set().union(*map(names_in, targets))
    return found - {"_Pass"}  # of `Window`, which the library alone makes


@pytest.mark.parametrize("module", MODULES)
def test_types_in_signatures_are_public(module: str) -> None:
    """Each type of ours that a public function, method or attribute takes or gives is public."""
    values = list(public_names().values())
    public = [*values, *(kind for value in values for kind in getattr(value, "__mro__", ()))]
    names = vars(importlib.import_module(f"batteries.{module}".removesuffix(".__init__")))
    for node in ast.parse(FILES[module].read_text()).body:
        if any(names.get(getattr(node, "name", ""), names) is each for each in public):
            said = set().union(*(names_in(kind) for kind in types_in(node) if kind))
            for name in said & own_types():
                assert any(names.get(name) is each for each in values), f"{node} has {name}"


def test_types_resolve_anywhere() -> None:
    """`get_type_hints` reads the types of all public functions and methods; frames are optional."""
    optional = {"DataFrame": object, "Figure": object}
    for value in public_names().values():
        kinds = filter(is_ours, getattr(value, "__mro__", ()))
        methods = [each for kind in kinds for key, each in vars(kind).items() if key[0] != "_"]
        for function in filter(inspect.isfunction, [value, *methods]):
            assert get_type_hints(function, localns=optional) is not None


def is_ours(value: type) -> bool:
    return value.__module__.partition(".")[0] == "batteries"


@pytest.mark.parametrize(
    "value", [pytest.param(value, id=name) for name, value in public_names().items()]
)
def test_docstrings_open_with_an_example(value: object) -> None:
    """Every public function and class has a docstring whose second paragraph is an example."""
    text = inspect.getdoc(value)
    assert text
    error = isinstance(value, type) and issubclass(value, Exception)
    protocol = getattr(value, "_is_protocol", False)
    if callable(value) and not isinstance(value, GenericAlias) and not error and not protocol:
        assert text.split("\n\n")[1].startswith(">>>")
        assert doctest.DocTestParser().get_examples(text)


def test_importing_does_nothing() -> None:
    """Importing loads no optional package, sets no variable and configures no logging."""
    script = """
import logging, os, sys, torch
handlers, environment, modules = len(logging.root.handlers), dict(os.environ), set(sys.modules)
import batteries
assert "torch" in sys.modules
for name in batteries.__all__:
    getattr(batteries, name)
optional = {"accelerate", "matplotlib", "mlflow", "pandas", "polars", "rich", "scipy", "sklearn",
            "tensorboard", "tensorboardX", "torchmetrics", "torchvision", "wandb"}
new = set(sys.modules) - modules
print(sorted(new & optional), [name for name in new if "checkpoint" in name and "torch" in name])
print(dict(os.environ) == environment, len(logging.root.handlers) == handlers)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == ["[] []", "True True"]
    assert result.stderr == ""


@pytest.mark.parametrize("module", MODULES)
def test_functions_are_short(module: str) -> None:
    """No function has more than 60 lines, besides what its docstring says."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.FunctionDef):
            said = len((ast.get_docstring(node, clean=False) or "").splitlines())
            assert (node.end_lineno or 0) - node.lineno + 1 - said <= 60, node.name


@pytest.mark.parametrize("module", MODULES)
def test_tensors_say_their_device(module: str) -> None:
    """A new tensor says its device: the program may have set another default than the CPU."""
    makers = {each.__name__ for each in _device_constructors()}
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"torch.{m}" for m in makers}:
            said = {each.arg for each in node.keywords}
            assert said & {"device", None}, ast.unparse(node)  # None: **options
