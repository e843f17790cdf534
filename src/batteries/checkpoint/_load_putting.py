"""States are loaded into their objects: all states, or none."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils import swap_tensors

from batteries._files import PathLike
from batteries._memory import has_state_before_loading, is_loader
from batteries.checkpoint._contents import state_key
from batteries.checkpoint._load_fitting import keep_dtypes, loads_as_torch
from batteries.checkpoint._read_outline import CheckpointError
from batteries.distributed._messages import is_sharded as is_dtensor

_NO_EXTRA = nn.Module.set_extra_state


def put_all(parts: dict[str, Any], states: dict[str, Any], path: PathLike, strict: bool) -> None:
    """Load every state, or leave every object as it was."""
    modules = [name for name, part in parts.items() if isinstance(part, nn.Module)]
    with ExitStack() as undo:
        for name in modules:
            for meta, real in _realised(parts[name], states[name], path):
                undo.callback(swap_tensors, meta, real)
        unchanged = {id(p) for name in modules for p in _of_same_dtype(parts[name], states[name])}
        own_ways = any(_loads_in_own_way(parts[name]) for name in modules)
        # Loaders come after their datasets, whose lengths may change. Modules come last: they are
        # known to fit, but other objects may still refuse their state.
        for name in sorted(parts, key=lambda name: (name in modules, is_loader(parts[name]))):
            part = parts[name]
            options = {} if strict or name not in modules else {"strict": False}
            try:
                _check_real(part)
                undo.callback(_way_back(part, keep=own_ways))
                part.load_state_dict(states[name], **options)
                if isinstance(part, Optimizer) and loads_as_torch(part):
                    keep_dtypes(part, states[name], unchanged)
            except Exception as error:
                why = f"it has no {error}" if isinstance(error, KeyError) else error
                raise CheckpointError(f"{state_key(name)} in {path} does not fit: {why}") from error
        undo.pop_all()


def _of_same_dtype(module: nn.Module, state: Any) -> Iterator[Tensor]:
    for name, parameter in module.named_parameters(remove_duplicate=False):
        value = state.get(name)
        if isinstance(value, Tensor) and value.dtype == parameter.dtype:
            yield parameter


def _loads_in_own_way(module: nn.Module) -> bool:
    """Whether a module has code for loading that is not torch's, and may fail in the middle."""
    codes: list[Any] = [module.load_state_dict]
    for part in module.modules():
        codes += [part._load_from_state_dict, part.set_extra_state]
        hooks = part._load_state_dict_pre_hooks, part._load_state_dict_post_hooks
        codes += [getattr(hook, "hook", hook) for each in hooks for hook in each.values()]
    return any(not str(getattr(code, "__module__", "torch")).startswith("torch") for code in codes)


def _way_back(part: Any, keep: bool) -> Callable[[], Any]:
    """A function that gives an object its present state again.

    Args:
        keep: Whether to copy the tensors and extra states of modules, which load in place.
    """
    if isinstance(part, nn.Module):
        inner = [*part.modules()] if keep else []
        tensors = [*part.parameters(), *part.buffers()] if keep else []
        pairs = [(each.detach(), each.detach().clone()) for each in tensors if not each.is_meta]
        own = [each for each in inner if type(each).set_extra_state is not _NO_EXTRA]
        extras = [(each, copy.deepcopy(each.get_extra_state())) for each in own]

        def load_back() -> None:
            for tensor, before in pairs:
                tensor.copy_(before)
            for each, extra in extras:
                with suppress(Exception):  # the first error is raised
                    each.set_extra_state(extra)

        return load_back
    if has_state_before_loading(part):
        state = part.state_dict()

        def load_again() -> None:
            with suppress(Exception):  # the first error is raised
                part.load_state_dict(state)

        return load_again
    before = dict(vars(part))

    def put_back() -> None:
        vars(part).clear()
        vars(part).update(before)

    return put_back


def _realised(module: nn.Module, state: Any, path: PathLike) -> Iterator[tuple[Tensor, Tensor]]:
    """Give memory to the tensors on the meta device for which the state has numbers.

    The tensors stay the same objects, since optimizers and other modules may hold them. To undo
    this, swap each returned pair again.
    """
    named = chain(
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    )
    for name, tensor in named:
        if not (tensor.is_meta and isinstance(state.get(name), Tensor)) or is_lazy(tensor):
            continue
        mesh = tensor.device_mesh if is_dtensor(tensor) else None  # type: ignore[attr-defined]
        device = mesh.device_type if mesh else state[name].device
        other = torch.empty_like(tensor, device=device)
        if isinstance(tensor, nn.Parameter):
            other = nn.Parameter(other, tensor.requires_grad)
        try:
            swap_tensors(tensor, other)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise CheckpointError(
                f"{name} is on the meta device and cannot be loaded from {path}, because other "
                f"objects refer to it: call model.to_empty(device=...) first ({error})"
            ) from error
        yield tensor, other


def param_groups(part: Any) -> list[Any]:
    found = getattr(part, "param_groups", None)  # ignite's metrics have any name that is asked for
    return found if isinstance(found, list) else []


def _check_real(part: Any) -> None:
    parameters = (each for group in param_groups(part) for each in group["params"])
    if any(getattr(parameter, "is_meta", False) for parameter in parameters):
        raise ValueError(
            "its parameters are on the meta device; load the model first, or in the same call"
        )
