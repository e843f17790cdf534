"""Sets `__module__` of public names to the module from which users import them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, get_type_hints


def own(room: dict[str, Any]) -> None:
    """Make a room, given by its `globals()`, the module of its public names."""
    for name in room["__all__"]:
        move(room[name], room["__name__"])


def move(value: Any, module: str) -> None:
    """Change the module of a function or class of ours."""
    if not str(getattr(value, "__module__", "")).startswith("batteries."):
        return  # an alias of types
    if isinstance(value, type) and "__annotations__" in vars(value):
        # Annotations are texts, which get_type_hints looks up in the class's old module.
        with suppress(NameError):
            hints = get_type_hints(value)
            value.__annotations__ = {name: hints[name] for name in value.__annotations__}
    value.__module__ = module
