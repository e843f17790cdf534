"""The state of an object, also the parts that its state dict leaves out."""

from __future__ import annotations

import warnings
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from batteries._changes import CONTAINERS, PLAIN, attributes, changed

_SIMPLE = (*PLAIN, *CONTAINERS)
_COUNT = "_update_count"  # the number of a metric's updates, which its averages need


def memory_of(part: Any) -> Any:
    """The object itself, or for metrics of torchmetrics an object with their whole state.

    torchmetrics leaves states out of the state dict unless they are persistent.
    """
    holds = isinstance(part, nn.Module) and any(_metrics_in(part))
    return _Metrics(part) if holds else part


def check_remembers(name: str, part: Any, state: Any, beside: Iterable[Any] = ()) -> None:
    """Raise or warn if an object has changed since its last save, and its state has not.

    An empty state raises: leaving out such an object loses nothing. Other states warn, because the
    run may do without some attributes, such as counters of calls.

    Args:
        beside: The other objects of the checkpoint, whose changes are saved.

    Raises:
        TypeError: The state is empty, and the object has tensors, or its attributes have changed.
    """
    held = attributes(part)
    empty = state is None or (isinstance(state, Mapping | list | tuple) and not state)
    told = f"state_dict() of {name}, a {type(part).__name__}, is"
    kept = [key for key, value in held.items() if empty and _has_tensors(value)]
    if kept:
        raise TypeError(
            f"{told} empty, but it has tensors ({', '.join(kept)}): they would be lost. Let its "
            "state_dict() return them (register_buffer with persistent=True), or leave it out"
        )
    if is_loader(part):  # the state is the same after each pass, and its iterators are not
        held = {key: value for key, value in held.items() if isinstance(value, _SIMPLE)}
    new = [] if _is_known(type(part)) else changed(part, held, state, beside)
    own = [key for key in new if isinstance(held[key], _SIMPLE)]
    if empty and own:
        raise TypeError(
            f"{told} empty, but its attributes ({', '.join(own)}) have changed since the last "
            "time: they would be lost. Let its state_dict() return them, or leave it out"
        )
    if new:
        warnings.warn(
            f"{told} the same as at the last save, but its attributes ({', '.join(new)}) have "
            "changed: a resumed run does not get them back. If it needs them, let state_dict() "
            "return them and load_state_dict() set them",
            stacklevel=3,
        )


def is_loader(part: Any) -> bool:
    """Some loaders begin a pass when `state_dict` is called, and then lose what they load."""
    kind = isinstance(part, Iterable) and not isinstance(part, Container | nn.Module)
    return kind and hasattr(part, "__dict__")


def _is_known(kind: type) -> bool:
    """Whether torch or this library makes the states of a class."""
    maker = next((each for each in kind.__mro__ if "state_dict" in vars(each)), kind)
    by = kind if issubclass(kind, nn.Module) else maker
    return by.__module__.partition(".")[0] in ("torch", "batteries")


def _has_tensors(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(map(_has_tensors, value))
    return isinstance(value, Tensor | np.ndarray)


class _Metrics:
    """The whole state of all metrics of torchmetrics in a module."""

    def __init__(self, part: nn.Module) -> None:
        self._part = part

    def state_dict(self) -> dict[str, Any]:
        found = dict(self._part.state_dict())
        for prefix, metric in _metrics_in(self._part):
            for key, value in metric.metric_state.items():
                found[f"{prefix}{key}"] = _copied(value)
            found[f"{prefix}{_COUNT}"] = metric.update_count
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        own = self.state_dict()
        # A state dict that torchmetrics itself wrote has no counts.
        odd = [key for key in {**own, **state} if not (key in own and key in state)]
        odd = [key for key in odd if not (key in own and key.endswith(_COUNT))]
        shapes = [key for key in own if key in state and _differs(own[key], state[key])]
        if odd or shapes:
            raise ValueError(
                f"the metric has {', '.join(own)}, but the saved state {', '.join(state)}; they "
                f"differ in {', '.join(odd or shapes)}: make the metric as it was when saved"
            )
        metrics = dict(_metrics_in(self._part))
        values = {key: value for key, value in state.items() if not key.endswith(_COUNT)}
        for prefix, metric in metrics.items():
            metric.reset()
            for key in metric.metric_state:
                values[f"{prefix}{key}"] = _copied(values[f"{prefix}{key}"], metric.device)
        self._part.load_state_dict(values)
        for prefix, metric in metrics.items():
            metric._update_count = state.get(f"{prefix}{_COUNT}", 1)


def _is_metric(part: Any) -> bool:
    """Whether it is a metric of torchmetrics, without importing torchmetrics."""
    kind = type(part)
    return isinstance(part, nn.Module) and all(
        hasattr(kind, name) for name in ("metric_state", "persistent", "update_count")
    )


def _metrics_in(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, part in module.named_modules():
        if hasattr(part, "compute_groups"):
            part.items()  # lets the metrics of a collection share their states
        if _is_metric(part):
            yield f"{name}." if name else "", part


def _copied(value: Any, device: torch.device | None = None) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to(device or value.device, copy=True)
    return [_copied(each, device) for each in value] if isinstance(value, list) else value


def _differs(own: Any, other: Any) -> bool:
    """Whether a state has another type or shape. A scalar may have grown to any shape."""
    if isinstance(own, Tensor) and isinstance(other, Tensor):
        return own.ndim > 0 and own.shape != other.shape
    return type(own) is not type(other)
