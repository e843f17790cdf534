"""Logged values: numbers by joined names, and names for their files."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from batteries._foreign import brief
from batteries._numbers import as_number

Metrics = Mapping[str, float | Tensor | Mapping[str, Any]]


class Numbers(dict[str, float]):
    """The result of `read_together`."""


def read_together(metrics: Metrics) -> dict[str, float]:
    """Metrics as numbers by joined names. The tensors of a device are copied together.

    >>> read_together({"train": {"loss": torch.tensor(0.5)}, "lr": 1})
    {'train/loss': 0.5, 'lr': 1.0}

    Raises:
        TypeError: A value is not one number (the message has its name), or `metrics` is no mapping.
        ValueError: Two values have the same joined name.
    """
    if isinstance(metrics, Numbers):
        return metrics
    read, away = Numbers(), dict[str, Any]()
    for name, value in flatten(metrics).items():
        found = _number(name, value)
        if type(found) is float:
            read[name] = found
        else:
            read[name], away[name] = math.nan, found  # NaN keeps the place in the order
    for device in {tensor.device for tensor in away.values()}:
        there = {name: tensor for name, tensor in away.items() if tensor.device == device}
        exact = torch.float32 if device.type == "mps" else torch.float64
        together = torch.stack([tensor.to(exact) for tensor in there.values()])
        read.update(zip(there, together.tolist(), strict=True))
    return read


def _number(name: str, value: Any) -> float | Tensor:
    if type(value) is float:  # the usual case, which takes a tenth of the time
        return value
    if isinstance(value, Tensor):
        value = value.detach()
        if value.numel() == 1 and value.device.type != "cpu":
            scalar: Tensor = value.reshape(())
            return scalar
    return as_number(value, f"the metric {name!r}")


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of nested mappings, with joined names."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{brief(values)} was logged; expected values by their names: {{'a': 0.5}}")
    found: dict[str, Any] = {}
    for name, value in _joined(values, ""):
        if name in found:
            raise ValueError(
                f"two values have the name {name!r} when nested names are joined: {found[name]!r} "
                f"and {value!r}; rename one"
            )
        found[name] = value
    return found


def _joined(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if type(value) is not float and isinstance(value, Mapping):
            yield from _joined(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def file_name(name: str) -> str:
    """A name for files on any file system. A changed name gets four digits of the name's hash."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:150]
    if cleaned == name:
        return name
    return f"{cleaned}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:4]}"
