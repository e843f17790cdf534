"""Averages of models whose parameters are DTensors, as those of FSDP2."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from batteries._modules import sharded_like
from batteries.checkpoint._contents import without_compile
from batteries.distributed._collectives import check_together
from batteries.distributed._messages import is_fsdp, is_sharded

_NOTHING = object()  # marks in a copy the places of FSDP2's hooks and states


def prepare_copy(model: nn.Module, memo: dict[int, Any]) -> None:
    """Let a deepcopy with this memo copy this rank's parts, without the additions of FSDP2."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if is_sharded(tensor):
            same = tensor.detach().clone()
            kept = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(same, tensor.requires_grad) if kept else same
            mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
            memo[id(mesh)] = mesh
    for part in model.modules():
        for _, _, value in _of_fsdp(part):
            memo[id(value)] = _NOTHING
    divided = [part for part in model.modules() if is_fsdp(part)]
    for part in divided:
        memo[id(part)] = (kind := _written(part)).__new__(kind)
    for part in divided:
        memo[id(part)].__setstate__(copy.deepcopy(vars(part), memo))


def finish_copy(same: nn.Module) -> None:
    for part in same.modules():
        for holder, key, value in [*_of_fsdp(part)]:
            if value is _NOTHING:
                del holder[key]


def _written(part: nn.Module) -> Any:
    """The user's class. FSDP2 has inserted its own class before it."""
    kinds = type(part).__mro__
    [at] = [at for at, kind in enumerate(kinds) if kind.__name__ == "FSDPModule"]
    return kinds[at + 1]


def _of_fsdp(part: nn.Module) -> Iterator[tuple[dict[Any, Any], Any, Any]]:
    """Hooks and states of FSDP2 in a module, with the dicts that hold them."""
    for name, value in [*vars(part).items()]:
        if value is _NOTHING or name.startswith("__composable_api"):
            yield vars(part), name, value
        elif name.endswith("_hooks") and isinstance(value, dict):
            for key, hook in [*value.items()]:
                function: Any = getattr(hook, "hook", hook)  # hooks of load_state_dict are wrapped
                while isinstance(function, functools.partial):
                    function = function.func
                module = str(getattr(function, "__module__", ""))
                if hook is _NOTHING or module.startswith("torch.distributed.fsdp"):
                    yield value, key, hook


def divide(average: nn.Module, theirs: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Replace whole tensors in `own` by this rank's parts if `theirs` are divided; send nothing."""
    new: dict[int, Tensor] = {}
    for name, tensor in own.items():
        other = theirs.get(name, tensor)
        if is_sharded(other) and not is_sharded(tensor) and other.shape == tensor.shape:
            part = sharded_like(tensor.detach(), other).clone().to(tensor.device)
            kept = isinstance(tensor, nn.Parameter)
            new[id(tensor)] = nn.Parameter(part, requires_grad=False) if kept else part
    for module in average.modules() if new else ():
        places: list[dict[str, Any]] = [module._parameters, module._buffers]
        for place in places:
            for key, value in place.items():
                place[key] = new.get(id(value), value)


def gather_in_forward(average: nn.Module, model: nn.Module) -> None:
    """Gather the whole weights of each module that FSDP2 has sharded, while its copy runs."""
    copies = {without_compile(name): part for name, part in average.named_modules()}
    for name, part in model.named_modules():
        same = copies.get(without_compile(name))
        if not is_fsdp(part) or same is None or hasattr(same, "_gathered"):
            continue
        below = {
            without_compile(".".join(filter(None, (name, other))))
            for other, inner in part.named_modules()
            if other and is_fsdp(inner)
        }
        own = [copies[known] for known in _without(copies, without_compile(name), below)]
        hooks = _Gathered([module._parameters for module in own])
        vars(same)["_gathered"] = hooks
        same.register_forward_pre_hook(hooks.before)
        same.register_forward_hook(hooks.after, always_call=True)


def _without(names: Mapping[str, Any], root: str, below: set[str]) -> Iterator[str]:
    """The names at and under `root`, without those under a name in `below`."""
    for name in names:
        under = [root, *below]
        owners = [top for top in under if name == top or not top or name.startswith(f"{top}.")]
        if owners and max(owners, key=len) == root:
            yield name


class _Gathered:
    """Hooks between which parameters are whole. All ranks run them together."""

    def __init__(self, places: list[dict[str, Any]]) -> None:
        self._places = places
        self._depth = 0
        self._parts: list[tuple[dict[str, Any], str, Tensor]] = []

    def before(self, module: nn.Module, args: Any) -> None:  # noqa: ARG002
        self._depth += 1
        if self._depth > 1:  # a module that calls itself
            return
        check_together(*(value for place in self._places for value in place.values()))
        whole: dict[int, Tensor] = {}
        for place in self._places:
            for name, tensor in [*place.items()]:
                if is_sharded(tensor):
                    self._parts.append((place, name, tensor))
                    if id(tensor) not in whole:
                        whole[id(tensor)] = nn.Parameter(_whole(tensor), requires_grad=False)
                    place[name] = whole[id(tensor)]

    def after(self, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002
        self._depth -= 1
        while not self._depth and self._parts:
            place, name, tensor = self._parts.pop()
            place[name] = tensor


def _whole(tensor: Any) -> Any:
    if sum(not placement.is_replicate() for placement in tensor.placements) > 1:
        raise RuntimeError(
            "the average of a model that is sharded in several dimensions cannot run by itself: "
            "evaluate the model inside of `with ema.swapped(model):`"
        )
    return tensor.full_tensor()
