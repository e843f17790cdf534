"""States of optimizers, schedulers and scalers are compared with their objects."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from batteries.checkpoint._contents import bare_name


class Misfit(NamedTuple):
    """One thing about a state that does not fit its object."""

    place: str
    kind: str  # missing, unexpected or mismatched, as a LoadReport has it
    text: str


def misfits(part: Any, state: Any) -> list[Misfit]:
    """What does not fit in the state of an optimizer, a scheduler or a scaler of torch.

    Nothing changes. A class that has its own `load_state_dict` is not checked.
    """
    checks: tuple[tuple[Any, Callable[[Any, Any], Iterator[Misfit]]], ...] = (
        (Optimizer, _of_optimizer),
        (LRScheduler, _of_scheduler),
        (torch.amp.GradScaler, _of_scaler),
    )
    for kind, check in checks:
        if isinstance(part, kind) and loads_as_torch(part):
            return list(check(part, state))
    return []


def loads_as_torch(part: Any) -> bool:
    hooked = getattr(part, "_optimizer_load_state_dict_pre_hooks", None)  # they may change it
    return type(part).load_state_dict.__module__.startswith("torch.") and not hooked


# ---------------------------------------------------------------- optimizers


def _of_optimizer(optimizer: Optimizer, state: Any) -> Iterator[Misfit]:
    own = optimizer.param_groups
    if not isinstance(state, Mapping) or not {"state", "param_groups"} <= set(state):
        found = f"it is a {type(state).__name__}"
        if isinstance(state, Mapping):
            found = f"it has {', '.join(map(str, state)) or 'nothing'}"
        yield Misfit("", "mismatched", f"it is not the state of an optimizer; {found}")
        return
    groups = state["param_groups"]
    there, here = ([len(group["params"]) for group in which] for which in (groups, own))
    if there != here:
        text = f"its param_groups have {there} parameters, but {here} in the optimizer"
        yield Misfit("param_groups", "mismatched", text)
        return
    names, own_names = (_names_in(which) for which in (groups, own))
    if names != own_names and sorted(names) == sorted(own_names):  # others were renamed
        first, other = next(pair for pair in zip(names, own_names, strict=True) if len({*pair}) > 1)
        text = f"it has {first} where the optimizer has {other}: its groups have another order"
        yield Misfit("param_groups", "mismatched", text)
        return
    places = [(number, index) for number, size in enumerate(here) for index in range(size)]
    by_id = {groups[i]["params"][j]: (i, own[i]["params"][j]) for i, j in places}
    for number, group in enumerate(_completed(optimizer, groups)):
        yield from _of_group(optimizer, number, group)
    for index, entry in state["state"].items():
        if index in by_id and isinstance(entry, Mapping):
            number, parameter = by_id[index]
            yield from _of_entry(optimizer, f"state[{index}]", entry, parameter, groups[number])
    if not _of_torch(optimizer):
        yield from _in_another_order(state["state"], {i: p for i, (_, p) in by_id.items()})


def _in_another_order(entries: Mapping[Any, Any], own: Mapping[Any, Tensor]) -> Iterator[Misfit]:
    """Whether the tensors of a state have the shapes of the parameters, but in another order."""
    shapes: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
    for index, parameter in own.items():
        entry = entries.get(index)
        for key, value in entry.items() if isinstance(entry, Mapping) else ():
            if isinstance(value, Tensor) and not is_lazy(parameter):
                shapes[key].append((tuple(value.shape), tuple(parameter.shape)))
    for key, pairs in shapes.items():
        there, here = zip(*pairs, strict=True)
        if there != here and sorted(there) == sorted(here):
            text = f"its {key!r} are of the same parameters in another order"
            yield Misfit("param_groups", "mismatched", text)
            return


def _names_in(groups: list[dict[str, Any]]) -> list[str]:
    """The names of the parameters, if the optimizer was made of `named_parameters()`."""
    return [bare_name(str(name)) for group in groups for name in group.get("param_names", [])]


def frozen_with_state(optimizer: Optimizer, state: Mapping[str, Any]) -> list[Tensor]:
    """The parameters that are frozen, although the state shows that they were trained."""
    pairs = zip(state["param_groups"], optimizer.param_groups, strict=True)
    both = (zip(saved["params"], own["params"], strict=True) for saved, own in pairs)
    return [
        parameter
        for index, parameter in chain.from_iterable(both)
        if not parameter.requires_grad and _is_trained(state["state"].get(index))
    ]


def _is_trained(entry: Any) -> bool:
    step = entry.get("step") if isinstance(entry, Mapping) else None
    if isinstance(step, Tensor):  # Adagrad makes its state before the first step
        return bool(step.any())
    return isinstance(entry, Mapping) and len(entry) > 0


def _completed(optimizer: Optimizer, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups with the options that the optimizer's class adds to those of older versions."""
    bare: list[dict[str, Any]] = [{**group, "params": []} for group in groups]
    probe: Any = object.__new__(type(optimizer))
    with suppress(Exception):  # a class that is not torch's
        probe.__setstate__(
            {"defaults": dict(optimizer.defaults), "state": {}, "param_groups": bare}
        )
    return bare


def _of_group(optimizer: Optimizer, number: int, group: dict[str, Any]) -> Iterator[Misfit]:
    own = optimizer.param_groups[number]
    needed = {key for key in optimizer.defaults if key in own}
    missing = [key for key in own if key in needed and key not in group]
    # A newer version of another library may have a new option. An older file lacks it, and has no
    # option that the class does not know.
    if missing and (_of_torch(optimizer) or group.keys() - own.keys()):
        place = f"param_groups[{number}]"
        for key in missing:
            yield Misfit(f"{place}.{key}", "missing", f"{place} has no {key!r}")


def _of_entry(
    optimizer: Optimizer,
    place: str,
    entry: Mapping[str, Any],
    parameter: Tensor,
    group: Mapping[str, Any],
) -> Iterator[Misfit]:
    """Compare the state of one parameter with the state that the optimizer would make for it."""
    known = _of_torch(optimizer) and not is_lazy(parameter)
    made = _made_for(optimizer, parameter, group) if known else None
    expected = optimizer.state.get(parameter, {}) if made is None else made
    for key, own in expected.items():
        if key not in entry:
            if made is not None and entry:  # the optimizer fills an empty one
                text = f"{place} has no {key!r}; it has {', '.join(map(str, entry))}"
                yield Misfit(f"{place}.{key}", "missing", text)
        elif isinstance(own, Tensor) and isinstance(entry[key], Tensor):
            there, here = tuple(entry[key].shape), tuple(own.shape)
            if there != here and not (own.numel() == 1 == entry[key].numel()):
                text = f"{place}[{key!r}] is {there}, but {here} in the optimizer"
                yield Misfit(f"{place}.{key}", "mismatched", text)


def _of_torch(optimizer: Optimizer) -> bool:
    """Whether an optimizer's `step` is torch's own."""
    module: str = getattr(type(optimizer).step, "__module__", "")
    return module.startswith("torch.optim.")


# Only the plain step runs on the meta device. The state is the same for all implementations.
_PLAIN = {"lr": 0.1, "foreach": False, "fused": False, "capturable": False, "differentiable": False}


def _made_for(
    optimizer: Optimizer, parameter: Tensor, group: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """The state that a class of torch makes for a parameter, with the options of a group.

    The class makes its state in its first step. So one step is taken with a parameter of that
    shape on the meta device. None if that fails.
    """
    kind = next(kind for kind in type(optimizer).__mro__ if kind.__module__.startswith("torch."))
    named = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    options = tuple(sorted({**named, **_PLAIN}.items()))
    try:
        return _made(kind, tuple(parameter.shape), parameter.dtype, options)
    except TypeError:  # an option that has no hash
        return _made.__wrapped__(kind, tuple(parameter.shape), parameter.dtype, options)


@functools.lru_cache(maxsize=1000)
def _made(
    kind: Any, shape: tuple[int, ...], dtype: torch.dtype, options: tuple[tuple[str, Any], ...]
) -> Mapping[str, Any] | None:
    alike = nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"))
    alike.grad = torch.empty_like(alike)
    trial = None
    # Some classes read numbers after they have made their state. A meta tensor has no numbers.
    with suppress(Exception):
        trial = kind([{**dict(options), "params": [alike]}])
        kind.step.__wrapped__(trial)  # without hooks that are registered for all optimizers
    return dict(trial.state[alike]) if trial is not None and alike in trial.state else None


def keep_dtypes(optimizer: Optimizer, state: Mapping[str, Any], unchanged: set[int]) -> None:
    """Give states the dtypes of the file again, such as float32 for 16-bit parameters.

    `load_state_dict` of torch casts them to the parameter's dtype, and a resumed run would differ.

    Args:
        unchanged: The ids of parameters that have the dtype of their weights in the file.
    """
    pairs = zip(state["param_groups"], optimizer.param_groups, strict=True)
    both = (zip(saved["params"], own["params"], strict=True) for saved, own in pairs)
    for index, parameter in chain.from_iterable(both):
        loaded, entry = optimizer.state.get(parameter), state["state"].get(index)
        if id(parameter) in unchanged and isinstance(loaded, dict) and isinstance(entry, Mapping):
            for key, value in entry.items():
                other: Any = loaded.get(key)
                alike = isinstance(value, Tensor) and type(value) is type(other) and key != "step"
                if alike and value.is_floating_point() and value.dtype != other.dtype:
                    loaded[key] = value.to(other.device)


# ---------------------------------------------------------------- schedulers and scalers

# Only some versions of torch have these.
_COME_AND_GONE = {"verbose", "default_min_lr", "use_beta1", "mode_worse"}


def _of_scheduler(scheduler: LRScheduler, state: Any) -> Iterator[Misfit]:
    if not isinstance(state, Mapping):
        text = f"it is a {type(state).__name__}, not the state of a scheduler"
        yield Misfit("", "mismatched", text)
        return
    own = scheduler.state_dict()
    here, there = ({key for key in keys if str(key)[0] != "_"} for keys in (own, state))
    missing, unexpected = here - there - _COME_AND_GONE, there - here - _COME_AND_GONE
    # A user's subclass may have a new attribute, or have lost one.
    own_class = type(scheduler).__module__.startswith("torch.")
    if (missing or unexpected) if own_class else (missing and unexpected):
        name = type(scheduler).__name__
        for key in sorted(missing):
            yield Misfit(key, "missing", f"it has no {key!r}, which a {name} has")
        for key in sorted(unexpected, key=str):
            yield Misfit(str(key), "unexpected", f"it has {key!r}, which no {name} has")
    for key in sorted(here & there):
        pair = own[key], state[key]
        if key.endswith("_lrs") and len({len(v) if isinstance(v, list) else 0 for v in pair}) > 1:
            text = f"{key} is {state[key]}, but {own[key]} in the scheduler"
            yield Misfit(key, "mismatched", text)
    inner, states = getattr(scheduler, "_schedulers", []), state.get("_schedulers", [])
    if len(inner) != len(states):
        text = f"it has {len(states)} schedulers, but the scheduler has {len(inner)}"
        yield Misfit("_schedulers", "mismatched", text)
    for index, (part, part_state) in enumerate(zip(inner, states, strict=False)):
        for place, kind, text in misfits(part, part_state):
            yield Misfit(f"_schedulers[{index}].{place}", kind, f"_schedulers[{index}]: {text}")


# Options that a program chooses, and that a scheduler's `load_state_dict` replaces.
_CHOSEN = {
    "T_max", "T_0", "T_mult", "eta_min", "total_steps", "total_iters", "step_size", "gamma",
    "milestones", "power", "start_factor", "end_factor", "factor",
}  # fmt: skip


def other_options(part: Any, state: Any) -> Iterator[str]:
    """The options that have another value in a scheduler's state than in the program."""
    of_torch = type(part).__module__.startswith("torch.")  # others may change their options
    if not (isinstance(part, LRScheduler) and of_torch and isinstance(state, Mapping)):
        return
    own = part.state_dict()
    for key in sorted(_CHOSEN & own.keys() & state.keys()):
        if own[key] != state[key]:
            yield f"{key} is {state[key]}, but {own[key]} in the program"
    inner, states = getattr(part, "_schedulers", []), state.get("_schedulers", [])
    for index, (each, each_state) in enumerate(zip(inner, states, strict=False)):
        for text in other_options(each, each_state):
            yield f"_schedulers[{index}]: {text}"


def _of_scaler(scaler: Any, state: Any) -> Iterator[Misfit]:
    for key in scaler.state_dict():  # empty where scaling is disabled
        if not isinstance(state, Mapping) or key not in state:
            yield Misfit(key, "missing", f"it has no {key!r}, which a {type(scaler).__name__} has")
