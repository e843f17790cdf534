"""The arguments of two sessions of a run, compared."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_LENGTH = re.compile(r"(?i)epoch|step|iter")  # in names of arguments for the length of a run


def differing(
    before: dict[str, Any], now: dict[str, Any], may_differ: list[str]
) -> dict[str, tuple[str | None, str | None]]:
    """The arguments that differ but must not: their texts in both sessions, or None if missing."""
    if before.get("args") or now.get("args"):
        pairs = (leaves(each.get("args") or {}) for each in (before, now))
        old, new = ({name: json.dumps(value) for name, value in each} for each in pairs)
    else:
        old, new = (_options(each.get("command") or []) for each in (before, now))
        if not all(_is_program(each.get("command") or []) for each in (before, now)):
            return {}
    free = tuple(f"{name}." for name in may_differ)
    names = [name for name in {**old, **new} if not f"{name}.".startswith(free)]
    return {n: (old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)}


def is_longer(name: str, old: str | None, new: str | None) -> bool:
    length = _LENGTH.search(name.rpartition(".")[2])
    return bool(length) and None not in (old, new) and float(new or 0) > float(old or 0)


def _is_program(command: list[str]) -> bool:
    """Whether a command runs a program, and not a notebook or typed code."""
    return len(command) > 1 and command[1].endswith(".py") and "ipykernel" not in command[1]


def _options(command: list[str]) -> dict[str, str]:
    """The words after a program, by the names of the options."""
    found: dict[str, str] = {}
    name = ""
    for number, word in enumerate(command[2:], start=1):
        option, equals, value = word.partition("=")
        if option.strip("-") and option.startswith("-"):
            name = option.lstrip("-").replace("-", "_")
            found[name] = value
        else:
            name, value = name or f"argument {number}", word
            found[name] = value
        name = "" if equals or name not in found or found[name] else name
    return found


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested dicts, with joined names: "model.width"."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
