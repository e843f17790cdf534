from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import typing
from pathlib import Path
from types import GenericAlias
from typing import Any, get_origin

import pytest
import torch
from torch import Tensor

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


def test_what_is_returned_is_public() -> None:
    """Every class of ours that a public function, method or attribute gives is public."""
    known = {value for value in public_names().values() if inspect.isclass(value)}
    for name, value in public_names().items():
        members = [value]
        if inspect.isclass(value):
            own = [member for key, member in vars(value).items() if not key.startswith("_")]
            members = [getattr(member, "fget", member) for member in own]
        for member in members:
            if inspect.isfunction(member):
                function = inspect.unwrap(member)
                said = {"Tensor": Tensor, **function.__globals__}
                hint = eval(str(function.__annotations__["return"]), said)
                assert {each for each in classes_in(hint) if is_ours(each)} <= known, name
        for hint in fields_of(value):
            assert {each for each in classes_in(hint) if is_ours(each)} <= known, name


def fields_of(value: Any) -> list[Any]:
    """The types of the public fields of a class, and of its bases."""
    found = []
    for kind in filter(is_ours, getattr(value, "__mro__", ())):
        for name, hint in vars(kind).get("__annotations__", {}).items():
            said = {"Tensor": Tensor, **vars(sys.modules[kind.__module__])}
            text = getattr(hint, "__forward_arg__", hint)
            if not name.startswith("_"):
                found.append(eval(text, said) if isinstance(text, str) else hint)
    return found


def classes_in(hint: Any) -> set[type]:
    inner = [classes_in(part) for part in typing.get_args(hint)]
    outer = typing.get_origin(hint) or hint
    return set().union(*inner, {outer} if inspect.isclass(outer) else set())


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
    makers = {each.__name__ for each in torch.utils._device._device_constructors()}
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"torch.{m}" for m in makers}:
            said = {each.arg for each in node.keywords}
            assert said & {"device", None}, ast.unparse(node)  # None: **options
