"""What a user may hold says where it is imported from, not which file it stands in."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, get_type_hints


def own(room: dict[str, Any]) -> None:
    """Make a room, by its `globals()`, the module of all its public names."""
    for name in room["__all__"]:
        value = room[name]
        if str(getattr(value, "__module__", "")).startswith("batteries."):
            move(value, room["__name__"])


def move(value: Any, module: str) -> None:
    """Change the module of a function or class."""
    if isinstance(value, type) and "__annotations__" in vars(value):
        # Texts, which are looked up in the module of the class.
        with suppress(NameError):
            hints = get_type_hints(value)
            value.__annotations__ = {name: hints[name] for name in value.__annotations__}
    value.__module__ = module
