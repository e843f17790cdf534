"""Configurations in any form that users pass: the values inside, as plain values."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from datetime import date
from datetime import time as clock
from enum import Enum
from pathlib import PurePath
from types import ModuleType, SimpleNamespace
from typing import Any

_TEXTS = {"uuid", "decimal", "fractions", "ipaddress", "pathlib", "datetime", "yarl", "yarl._url"}
_TEXTS |= {"pydantic.networks", "pydantic_core._pydantic_core"}  # their `str` is their whole value
_MAPPING = ("to_dict", "keys", "items", "__getitem__")  # such as a ConfigDict of ml_collections


def parts_of(value: Any) -> Mapping[Any, Any] | list[Any] | None:
    """The values inside a configuration, by name or in order; None for a plain value.

    It knows mappings, dataclasses, attrs, pydantic, msgspec, named tuples, namespaces, and
    omegaconf with its interpolations resolved.
    """
    kind = type(value)
    if isinstance(value, type):
        return None
    if kind.__module__.startswith("omegaconf."):
        found: Mapping[Any, Any] | list[Any] | None = _resolved(value)
        return found
    if isinstance(value, Mapping):
        return value
    if all(hasattr(kind, name) for name in _MAPPING) and not hasattr(kind, "__array__"):
        return dict(value.items())
    if isinstance(value, Namespace | SimpleNamespace):
        return vars(value)
    if is_dataclass(kind):  # no attribute keeps an InitVar, so it is not listed
        return _attributes(value, [each.name for each in dataclass_fields(kind)])
    for listed in ("model_fields", "__struct_fields__", "_fields", "__fields__"):
        fields = getattr(kind, listed, None)
        if isinstance(fields, Mapping | tuple) and all(isinstance(each, str) for each in fields):
            return _attributes(value, fields) | dict(getattr(value, "model_extra", None) or {})
    if isinstance(getattr(kind, "__attrs_attrs__", None), tuple):
        return _attributes(value, [each.name for each in kind.__attrs_attrs__])
    return None


def _resolved(value: Any) -> Any:
    """Plain containers. A missing value, or an interpolation that refers to nothing, stays text."""
    omegaconf = sys.modules["omegaconf"].OmegaConf
    if not omegaconf.is_config(value) or not isinstance(value._value(), dict | list):
        return None
    with suppress(Exception):
        return omegaconf.to_container(value, resolve=True)
    plain = omegaconf.to_container(value, resolve=False)
    for key in plain if isinstance(plain, dict) else range(len(plain)):
        with suppress(Exception):
            each = value[key]
            plain[key] = _resolved(each) if omegaconf.is_config(each) else each
    return plain


def plain_value(value: Any) -> Any:
    """The value of an enum's member, and the text of a path, an address or a time.

    Other values are returned as they are.
    """
    if isinstance(value, Enum):
        return plain_value(value.value)
    if isinstance(value, date | clock):  # a datetime is a date
        return value.isoformat()
    if type(value).__module__.startswith("omegaconf."):  # a single value, or a missing one
        return value if isinstance(found := value._value(), dict | list) else plain_value(found)
    known = isinstance(value, PurePath) or type(value).__module__ in _TEXTS
    return str(value) if known and not isinstance(value, type) else value


def attributes_of(value: Any) -> dict[str, Any] | None:
    """The attributes of an object or a class and of its bases, without methods."""
    own = getattr(value, "__dict__", None)
    if own is None or isinstance(value, ModuleType):
        return None if own is None else dict(own)
    kind, own = (value, {}) if isinstance(value, type) else (type(value), own)
    shared = {name: each for base in reversed(kind.__mro__) for name, each in vars(base).items()}
    return {
        name: each
        for name, each in shared.items()
        if not name.startswith("_") and not hasattr(type(each), "__get__")
    } | own


def named_parts(value: Any) -> Mapping[Any, Any] | None:
    found = parts_of(value)
    return found if isinstance(found, Mapping) else None


def _attributes(value: Any, names: Iterable[str]) -> dict[str, Any]:
    found = {}
    for name in names:
        with suppress(AttributeError):  # the attribute was never set
            found[name] = getattr(value, name)
    return found
