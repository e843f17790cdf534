"""States are compared with their objects before they are loaded."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from batteries._files import PathLike
from batteries._foreign import brief
from batteries._modules import own_part, sharded_like
from batteries._warnings import warn
from batteries.checkpoint._contents import Checkpoint, bare_name, renamed, state_key
from batteries.checkpoint._load_fitting import (
    frozen_with_state,
    loads_as_torch,
    misfits,
    other_options,
)
from batteries.checkpoint._load_putting import put_all
from batteries.checkpoint._read import named_weights
from batteries.checkpoint._read_outline import CheckpointError, is_state


class LoadReport(NamedTuple):
    """What `load_checkpoint` put into modules, and, with `strict=False`, what did not fit.

    >>> LoadReport(loaded=[], missing=["model.bias"], unexpected=[], mismatched=[]).missing
    ['model.bias']

    The names of parameters and buffers begin with the name of their object, such as `model.bias`.
    An optimizer, scheduler or scaler whose state does not fit stays as it was. The lists then have
    the places that do not fit, such as `optimizer.state[0].exp_avg`. If the state fits, it is
    loaded, and no list names it.

    Attributes:
        loaded: The names of the parameters and buffers that were loaded.
        missing: Names that only the object has.
        unexpected: Names that only the file has.
        mismatched: Names with another shape or layout in the file, with integers instead of floats,
            or with numbers that are too large for the dtype of the object.
    """

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]


def put_in(
    checkpoint: Checkpoint,
    parts: dict[str, Any],
    path: PathLike,
    *,
    strict: bool = True,
    prefix: str = "",
    key: str = "model",
) -> LoadReport:
    """Compare each state with its object, and load all of them if all fit."""
    report = LoadReport([], [], [], [])
    states: dict[str, Any] = {}
    # A file of an older version, or of another module, may not have the metrics in a module.
    absent = {n for n in parts if "." in n and not (strict and state_key(n) in checkpoint)}
    parts = {name: part for name, part in parts.items() if name not in absent}
    for name, part in parts.items():
        states[name] = _state_in(checkpoint, name, key, path)
        if isinstance(part, nn.Module):
            under = prefix if name == "model" else ""
            states[name] = _fitted(name, states[name], part, path, strict, under, report)
        elif found := misfits(part, states[name]):
            if strict:
                told = _told([misfit.text for misfit in found], name, "leave it as it is")
                raise CheckpointError(f"{state_key(name)} in {path} does not fit: {told}")
            for place, kind, _ in found:
                getattr(report, kind).append(f"{name}.{place}" if place else name)
            del states[name]
    others = [
        f"{name}: {each}" for name in states for each in other_options(parts[name], states[name])
    ]
    put_all({name: parts[name] for name in states}, states, path, strict)
    if others:
        warn(
            f"{path} has other options than the program ({'; '.join(others)}). The options of the "
            "checkpoint are used, as in torch. To train longer than before, make a scheduler for "
            "the rest, or set its attributes after loading",
        )
    _warn_of_meta(parts)
    if any(isinstance(parts[name], Optimizer) for name in states):
        _warn_of_order(parts.get("model"), states.get("model"), path)
    for name in states:
        if isinstance(part := parts[name], Optimizer) and loads_as_torch(part):
            _warn_of_frozen(name, frozen_with_state(part, states[name]), parts, path)
    return report


def _fitted(
    name: str,
    state: Any,
    part: nn.Module,
    path: PathLike,
    strict: bool,
    prefix: str,
    report: LoadReport,
) -> Any:
    """The state of a module under its own names, or an error if it does not fit."""
    if not isinstance(state, Mapping):
        raise CheckpointError(
            f"{state_key(name)} in {path} is a {type(state).__name__}; expected the state dict of "
            "a module"
        )
    if odd := [place for place in state if not isinstance(place, str)]:
        raise CheckpointError(
            f"{state_key(name)} in {path} has the name {brief(odd[0])}; expected the state dict of "
            "a module, whose names are strings"
        )
    own, ties = part.state_dict(), _ties(part)
    state = _under_own_names(state, own, prefix, path)
    if strict and (torn := _torn(state, ties)):
        raise CheckpointError(
            f"{torn[0]!r} and {torn[1]!r} are one tensor in the {name}, but have different numbers "
            f"in {path}: make the {name} without this tie, or load the second one with "
            "load_checkpoint(..., strict=False)"
        )
    state = _with_tied(state, ties)
    for place, value in state.items():
        if isinstance(value, Tensor) and place in own:
            state[place] = sharded_like(value, own[place])
    loaded = len(report.loaded)
    unlike = _compare(name, state, own, path, report)
    if unlike and strict and not _loads(state, part):
        raise CheckpointError(_told(unlike, name) + _hint(state, own))
    if not strict and own and state and len(report.loaded) == loaded:
        raise CheckpointError(_nothing_fits(name, state, own, path))
    if not strict:
        fitting = {k: v for k, v in state.items() if _fits(k, v, own)}
        state = {k: v for k, v in fitting.items() if not _overflows(v, own[k])}
    for place in state:
        if place in own and (why := _why_unwritable(own[place])):
            raise CheckpointError(f"{place} of the {name} cannot be loaded from {path}: {why}")
    return state


def _why_unwritable(own: Any) -> str:
    """Why torch cannot write into a tensor, which it finds out in the middle; empty if it can."""
    if not isinstance(own, Tensor) or is_lazy(own):
        return ""
    if own.is_inference() and not torch.is_inference_mode_enabled():
        return (
            "it was made in torch.inference_mode(); make the model outside of it, or load it inside"
        )
    strides = own.stride() if own.layout == torch.strided else own.shape
    if any(size > 1 and step == 0 for size, step in zip(own.shape, strides, strict=True)):
        return "several of its elements share one place in memory, as after expand(); clone() it"
    return ""


def _warn_of_order(model: Any, state: Any, path: PathLike) -> None:
    """Warn if a model has its parameters in another order than the file of an optimizer's state."""
    if not isinstance(model, nn.Module):
        return
    named = [*model.named_parameters(remove_duplicate=False)]
    uses = Counter(id(parameter) for _, parameter in named)
    own = {name: None for name, parameter in named if uses[id(parameter)] == 1}
    there = [name for name in state if name in own]
    if there == sorted(there):  # as some libraries write them
        return
    moved = next((name for name, other in zip(own, there, strict=False) if name != other), None)
    if moved is not None and len(own) == len(there):
        warn(
            f"{path} has the parameters in another order than the model, from {moved} on. An "
            "optimizer's state goes by the order, so it may now be that of other parameters: make "
            "the layers in the same order as before, or leave out the optimizer",
        )


def _warn_of_frozen(name: str, frozen: list[Tensor], parts: Any, path: PathLike) -> None:
    """Warn of frozen parameters that the run has trained. The run may have unfrozen them."""
    if not frozen:
        return
    modules = (part for part in parts.values() if isinstance(part, nn.Module))
    named = {id(tensor): own for part in modules for own, tensor in part.named_parameters()}
    first = named.get(id(frozen[0]), f"a parameter of shape {tuple(frozen[0].shape)}")
    which, says = "a parameter that is", ": "
    if len(frozen) > 1:
        which, says = f"{len(frozen)} parameters that are", "; the first is "
    warn(
        f"the {name} in {path} has trained {which} frozen now (requires_grad=False){says}{first}. "
        "A checkpoint does not say what is frozen: if the run had unfrozen parameters, unfreeze "
        "them before you go on",
    )


def _warn_of_meta(parts: dict[str, Any]) -> None:
    """Warn of buffers without numbers that no file has."""
    for name, part in parts.items():
        buffers = part.named_buffers() if isinstance(part, nn.Module) else ()
        empty = [buffer for buffer, tensor in buffers if tensor.is_meta]
        if empty := [*{*empty}.difference(part.state_dict())] if empty else []:
            warn(
                f"{min(empty)} of the {name} is still on the meta device: a buffer with "
                "persistent=False is in no file; compute it before you call the model",
            )


def _state_in(checkpoint: Checkpoint, name: str, key: str, path: PathLike) -> Any:
    found = find(checkpoint, name, key)
    wanted = key if name == "model" else name
    if found is None and state_key(wanted) not in checkpoint:
        remedy = f"leave out {name}, or load the checkpoint of a run that saved it"
        if name == "model":
            remedy = 'pass key="..." with the name of weights in the file, or ' + remedy
        raise CheckpointError(
            f"{path} has no {state_key(wanted)}; it has {', '.join(map(str, checkpoint))}; {remedy}"
        )
    return found


def find(checkpoint: Checkpoint, name: str, key: str) -> Any:
    """The state of an object, under the name that this library or another one gives it."""
    if name == "model" and key != "model":
        return named_weights(checkpoint, key)
    if state_key(name) in checkpoint:
        return checkpoint[state_key(name)]
    found = named_weights(checkpoint, name)
    if found is None and name == "model" and checkpoint and is_state(checkpoint):
        return checkpoint  # save_checkpoint(model.state_dict(), path)
    return found


def _under_own_names(state: Any, own: Any, prefix: str, path: PathLike) -> Any:
    """A state dict under the names of its object, whatever wrappers it was saved from."""
    if prefix:
        state = _under(prefix, state, path)
    names = {bare_name(key): key for key in own}
    if len(names) < len(own):  # some names differ only in "module": the object itself has those
        return state
    names |= {bare_name(module): module for module in getattr(own, "_metadata", {})}
    taken: set[str] = set(own) & set(state)

    def own_name(key: str) -> str:
        name: str = names.get(bare_name(key), key)
        if name in taken:  # the file has another tensor for it, which must not be lost
            return key
        taken.add(name)
        return name

    metadata = getattr(state, "_metadata", {})
    new = {key: own_name(key) for key in state}
    new |= {key: names.get(bare_name(key), key) for key in metadata if key not in new}
    return renamed(state, new.__getitem__)


def _under(prefix: str, state: Any, path: PathLike) -> Any:
    """The weights whose names begin with a prefix, which is removed. Wrappers do not matter."""
    for form in (str, bare_name):
        names = {key: form(key) for key in state if form(key).startswith(prefix)}
        if names:
            return {name.removeprefix(prefix): state[key] for key, name in names.items()}
    raise CheckpointError(
        f"no weight in {path} has a name that begins with prefix={prefix!r}; it has {_first(state)}"
    )


def _compare(name: str, state: Any, own: Any, path: PathLike, report: LoadReport) -> list[str]:
    """Sort the names into the report, and return texts of what does not fit."""
    shapes, absent = [], []
    for key in own:
        if key not in state:
            report.missing.append(f"{name}.{key}")
            absent.append(f"{state_key(name)}[{key!r}] is not in {path}")
        elif not _fits(key, state[key], own):
            report.mismatched.append(f"{name}.{key}")
            there, here = _difference(state[key], own[key])
            shapes.append(
                f"{state_key(name)}[{key!r}] is {there} in {path} but {here} in the {name}"
            )
        elif _overflows(state[key], own[key]):
            report.mismatched.append(f"{name}.{key}")
            shapes.append(
                f"{state_key(name)}[{key!r}] has numbers in {path} that are too large for the "
                f"{own[key].dtype} of the {name}"
            )
        else:
            report.loaded.append(f"{name}.{key}")
    for key in state:
        if key not in own:
            report.unexpected.append(f"{name}.{key}")
            absent.append(f"{state_key(name)}[{key!r}] is not in the {name}")
    return shapes + absent


def _ties(module: nn.Module) -> list[list[str]]:
    """The names of each tensor that has several."""
    names: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            names.setdefault(id(tensor), []).append(name)
    return [tied for tied in names.values() if len(tied) > 1]


def _torn(state: Any, ties: list[list[str]]) -> tuple[str, str] | None:
    """Two names of one tensor for which a state has different numbers. Some would be lost."""
    for tied in ties:
        first, *others = [name for name in tied if isinstance(state.get(name), Tensor)] or [""]
        for name in others:
            if not _alike(state[first], state[name]):
                return first, name
    return None


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same bits; True if they differ in more than their numbers."""
    one, other = own_part(one), own_part(other)
    if (one.shape, one.dtype) != (other.shape, other.dtype) or one.is_meta or other.is_meta:
        return True
    if one.layout != torch.strided or one.data_ptr() == other.data_ptr():
        return True  # torch.save writes tied weights so
    one, other = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(one, other)


def _with_tied(state: Any, ties: list[list[str]]) -> Any:
    """A state with all names of each tied tensor: some files have only one of them."""
    same = renamed(state, str)
    for tied in ties:
        there = [name for name in tied if name in state]
        same.update({name: state[there[0]] for name in tied if there and name not in state})
    return same


def _loads(state: Any, module: nn.Module) -> bool:
    """Whether a module loads a state with other names or shapes: some convert their older forms."""
    try:
        same = copy.deepcopy(module)
        same.load_state_dict(state)
    except Exception:
        return False
    own, before = same.state_dict(), module.state_dict()
    return all(
        _fits(key, value, own) and not _overflows(value, before.get(key, own[key]))
        for key, value in state.items()
        if key in own
    )


def _nothing_fits(name: str, state: Any, own: Any, path: PathLike) -> str:
    return (
        f"nothing in {state_key(name)} of {path} fits the {name}, even with strict=False: the file "
        f"has {_first(state)}, and the {name} has {_first(own)}, with other names, shapes or "
        f"dtypes; make the {name} as it was when it was saved (with its adapters), rename the "
        f"weights in the file, or leave out {name}"
    )


def _first(state: Any) -> str:
    return ", ".join([*map(str, state)][:3] + ["..."] * (len(state) > 3)) or "none"


def _hint(state: Any, own: Any) -> str:
    """A hint at `prefix=`, if all names of the object are in the file after one prefix."""
    first = next(iter(own), "")
    begins = (name.removesuffix(first) for name in state if name.endswith(f".{first}"))
    for prefix in begins:
        if all(prefix + name in state for name in own):
            return f"; in the file these names begin with {prefix!r}: pass prefix={prefix!r}"
    return ""


def _told(found: list[str], name: str, otherwise: str = "load what fits") -> str:
    more = f"; and {len(found) - 8} more" if len(found) > 8 else ""
    # `resume` raises this error, too, and has no option `strict`.
    how = f"{otherwise} with load_checkpoint(..., strict=False)"
    remedy = f"make the {name} as it was when it was saved, or {how}"
    return f"{'; '.join(found[:8])}{more}; {remedy}"


def _fits(key: str, value: Any, own: Any) -> bool:
    mine = own.get(key)
    if not (isinstance(value, Tensor) and isinstance(mine, Tensor)):  # a module's extra state
        return key in own and isinstance(value, Tensor) == isinstance(mine, Tensor)
    if is_lazy(mine):
        return True
    same_kind = value.is_floating_point() == mine.is_floating_point()
    same_kind = same_kind and value.layout == mine.layout
    return value.shape == mine.shape and same_kind and value.is_complex() == mine.is_complex()


def _overflows(value: Any, own: Any) -> bool:
    """Whether some numbers are too large for the object's dtype, such as float16."""
    if not (isinstance(value, Tensor) and value.numel()) or value.dtype == own.dtype:
        return False
    if value.is_complex() or value.is_meta or value.layout != torch.strided:
        return False
    there = own_part(value).detach()
    if not value.is_floating_point():
        return not torch.equal(there.to(own.dtype).long(), there.long())
    most = torch.finfo(own.dtype).max
    if torch.finfo(value.dtype).max < 1.01 * most:  # bfloat16 has nearly the range of float32
        return False
    there = there.to(torch.promote_types(there.dtype, torch.float32))
    low, high = there.aminmax()
    if max(-low, high) <= most:  # False if one of them is NaN
        return False
    large = there.nan_to_num(0, 0, 0).abs().gt(most)
    # The program itself made these infinite, such as those of a mask.
    mine = own_part(own)
    if not mine.is_meta and mine.shape == large.shape:
        large &= ~mine.float().isinf().to(large.device)
    return bool(large.any())


def _difference(value: Any, own: Any) -> tuple[object, object]:
    if not (isinstance(value, Tensor) and isinstance(own, Tensor)):
        return type(value).__name__, type(own).__name__
    if value.shape != own.shape:
        return tuple(value.shape), tuple(own.shape)
    if value.layout != own.layout:
        return value.layout, own.layout
    return value.dtype, own.dtype
