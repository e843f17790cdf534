"""The state of an object, also the parts that its state dict leaves out."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from batteries._changes import CONTAINERS, PLAIN, attributes, changed, ids_in, is_library
from batteries._warnings import warn

_SIMPLE = (*PLAIN, *CONTAINERS)
_COUNT = "_update_count"  # the number of a metric's updates, which its averages need


def memory_of(part: Any) -> Any:
    """The object itself, or for metrics of torchmetrics an object with their whole state.

    torchmetrics leaves states out of the state dict unless they are persistent.
    """
    lists = isinstance(part, nn.ModuleDict | nn.ModuleList) and any(_metrics_in(part))
    return _Metrics(part) if _is_metric(part) or lists else part


def metrics_inside(module: nn.Module) -> _Metrics | None:
    """The whole state of the metrics in a module of the program, without the module's own."""
    found: dict[str, nn.Module | None] = {}
    for name, part in module.named_modules():
        inner = any(name.startswith(f"{outer}.") for outer in found)
        if (_is_metric(part) or hasattr(part, "compute_groups")) and not inner:
            found[name] = part
    if not found or memory_of(module) is not module:
        return None
    holder = nn.Module()
    holder._modules = found  # whose names may have dots
    return _Metrics(holder)


def check_remember(parts: Mapping[str, tuple[Any, Any]]) -> None:
    """Raise or warn if an object has changed since its last save, and its state has not.

    An empty state raises: leaving out such an object loses nothing. Other states warn, because the
    run may do without some attributes. Modules with a state are not looked at: what they learn is
    in it, and their other attributes are caches.

    Args:
        parts: The objects of a checkpoint with their states, by name. The model is not checked.

    Raises:
        TypeError: The state is empty, and the object has tensors, or its attributes have changed.
    """
    owners: list[tuple[Any, set[int]]] = []
    for name, (part, state) in parts.items():
        if name == "model":
            continue
        empty = state is None or (isinstance(state, Mapping | list | tuple) and not state)
        told = f"state_dict() of {name}, a {type(part).__name__}, is"
        if empty:
            _check_no_tensors(part, told)
        if not empty and isinstance(getattr(part, "param_groups", None), list):
            _warn_of_lost(name, part, [each for _, each in parts.values()])
        if _is_known(part) or (isinstance(part, nn.Module) and not empty):
            continue
        owners = owners or [(each, ids_in(each)) for each, _ in parts.values()]
        beside = set[int]().union(*(ids for each, ids in owners if each is not part))
        held = attributes(part)
        if is_loader(part):  # after each pass, its state is the same, but its iterators are new
            held = {key: value for key, value in held.items() if isinstance(value, _SIMPLE)}
        new = changed(part, held, state, beside)
        own = [key for key in new if isinstance(held[key], _SIMPLE)]
        if empty and own:
            raise TypeError(
                f"{told} empty, but the object's attributes ({', '.join(own)}) have changed since "
                "the last save: the new values would be lost. Let state_dict() return them, or "
                "leave the object out"
            )
        if new:
            warn(
                f"{told} the same as at the last save, but the object's attributes "
                f"({', '.join(new)}) have changed: a resumed run does not get them back. If it "
                "needs them, let state_dict() return them and load_state_dict() set them",
            )


def _check_no_tensors(part: Any, told: str) -> None:
    kept = [key for key, value in attributes(part).items() if _has_tensors(value)]
    if kept:
        raise TypeError(
            f"{told} empty, but the object has tensors ({', '.join(kept)}): they would be lost. "
            "Let state_dict() return them (register_buffer with persistent=True), or leave the "
            "object out"
        )


def _warn_of_lost(name: str, optimizer: Any, states: list[Any]) -> None:
    """Warn if an optimizer has an inner optimizer, or slow weights, that are in no state.

    Only tensors with the shape of a parameter count: others may be constants.
    """
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    apart, shapes = set(map(id, parameters)), {each.shape for each in parameters} - {()}
    found = {}
    for key, value in attributes(optimizer).items():
        tensors = _tensors_in([] if key in ("param_groups", "state") else value)
        found[key] = [each for each in tensors if id(each) not in apart and each.shape in shapes]
    if not any(found.values()):
        return
    saved = [*_tensors_in(states)]
    ids = set(map(id, saved))
    # A state dict may have copies.
    lost = [
        key
        for key, own in found.items()
        for each in [one for one in own if id(one) not in ids][:1]
        if not any(_equal(each, other) for other in saved)
    ]
    if lost:
        warn(
            f"state_dict() of {name}, a {type(optimizer).__name__}, lacks the tensors in its "
            f"attributes ({', '.join(lost)}): a resumed run does not get them back. Let "
            "state_dict() return them and load_state_dict() set them",
        )


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Optimizer):
        yield from _tensors_in(value.state)
    elif isinstance(value, Mapping):
        yield from _tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors_in(each)


def _equal(one: Tensor, other: Tensor) -> bool:
    alike = (one.device, one.dtype) == (other.device, other.dtype)
    return type(one) is type(other) is Tensor and alike and torch.equal(one, other)


def is_loader(part: Any) -> bool:
    """Whether it is a loader. Some begin a pass at `state_dict`, and lose what they load then."""
    kind = isinstance(part, Iterable) and not isinstance(part, Container | nn.Module)
    return kind and hasattr(part, "__dict__")


def has_state_before_loading(part: Any) -> bool:
    """Whether `state_dict` works before a state is loaded. ZeRO's optimizer has to gather first."""
    return not (is_loader(part) or hasattr(part, "consolidate_state_dict"))


def _is_known(part: Any) -> bool:
    """Whether a library, not the program, makes the state of an object."""
    kind = type(part)
    maker = next((each for each in kind.__mro__ if "state_dict" in vars(each)), kind)
    return is_library(str((kind if isinstance(part, nn.Module) else maker).__module__))


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
                f"the metric has {', '.join(own)}, but the saved state has {', '.join(state)}; "
                f"they differ in {', '.join(odd or shapes)}: make the metric as it was when saved"
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
