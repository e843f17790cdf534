"""Sets `__module__` of public names to the module from which users import them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, get_type_hints


def own(room: dict[str, Any]) -> None:
    """Set the module of a room's public names to the room, given by its `globals()`."""
    for name in room["__all__"]:
        move(room[name], room["__name__"])


def move(value: Any, module: str) -> None:
    """Change the module of a function or class of this package."""
    if not str(getattr(value, "__module__", "")).startswith("batteries."):
        return  # an alias of types
    if isinstance(value, type) and "__annotations__" in vars(value):
        # Annotations are texts. get_type_hints looks up their names in the old module.
        with suppress(NameError):
            hints = get_type_hints(value)
            value.__annotations__ = {name: hints[name] for name in value.__annotations__}
    value.__module__ = module
