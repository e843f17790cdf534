"""States are compared with their objects and loaded into them: all states, or none."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import swap_tensors

from batteries._files import PathLike
from batteries._memory import is_loader
from batteries._modules import sharded_like, unwrap
from batteries.checkpoint._contents import Checkpoint, bare_name, renamed, state_key
from batteries.checkpoint._load_fitting import misfits
from batteries.checkpoint._read import named_weights
from batteries.checkpoint._read_outline import CheckpointError
from batteries.distributed._messages import is_sharded as is_dtensor


class LoadReport(NamedTuple):
    """What `load_checkpoint` put into the objects, and, with `strict=False`, what did not fit.

    >>> LoadReport(loaded=[], missing=["model.bias"], unexpected=[], mismatched=[]).missing
    ['model.bias']

    The lists have the names of parameters and buffers, after the name of their object. An
    optimizer, scheduler or scaler whose state does not fit stays as it was. The lists have the
    places that do not fit, such as `optimizer.state[0].exp_avg`.
    """

    loaded: list[str]
    missing: list[str]  # only in the object
    unexpected: list[str]  # only in the file
    mismatched: list[str]  # of another shape, or integers for floats


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
    for name, part in parts.items():
        states[name] = _state_in(checkpoint, name, key, path)
        if isinstance(part, nn.Module):
            if not isinstance(states[name], Mapping):
                raise CheckpointError(
                    f"{state_key(name)} in {path} is a {type(states[name]).__name__}; expected "
                    "the state dict of a module"
                )
            own = unwrap(part).state_dict()
            states[name] = _under_own_names(states[name], own, prefix if name == "model" else "")
            states[name] = _with_tied(states[name], part)
            for place, value in states[name].items():
                if isinstance(value, Tensor) and place in own:
                    states[name][place] = sharded_like(value, own[place])
            loaded = len(report.loaded)
            unlike = _compare(name, states[name], own, path, report)
            if unlike and strict and not _loads(states[name], part):
                raise CheckpointError(_told(unlike, name) + _hint(states[name], own))
            if not strict:
                if own and states[name] and len(report.loaded) == loaded:
                    raise CheckpointError(_nothing_fits(name, states[name], own, path))
                states[name] = {k: v for k, v in states[name].items() if _fits(k, v, own)}
        elif found := misfits(part, states[name]):
            if strict:
                told = _told([misfit.text for misfit in found], name, "to leave it as it is")
                raise CheckpointError(f"{state_key(name)} in {path} does not fit: {told}")
            for place, kind, _ in found:
                getattr(report, kind).append(f"{name}.{place}" if place else name)
            del states[name]
    _put_all({name: parts[name] for name in states}, states, path, strict)
    return report


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
    return named_weights(checkpoint, name)


def _home(tensor: Any) -> torch.device | str:
    return str(tensor.device_mesh.device_type) if is_dtensor(tensor) else tensor.device


def _under_own_names(state: Any, own: Any, prefix: str) -> Any:
    """A state dict under the names of its object, whatever wrappers it was saved from."""
    if prefix:
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    names = {bare_name(key): key for key in own}
    if len(names) < len(own):  # some names differ only in "module": the object itself has those
        return state
    names |= {bare_name(module): module for module in getattr(own, "_metadata", {})}
    return renamed(state, lambda key: names.get(bare_name(key), key))


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
        else:
            report.loaded.append(f"{name}.{key}")
    for key in state:
        if key not in own:
            report.unexpected.append(f"{name}.{key}")
            absent.append(f"{state_key(name)}[{key!r}] is not in the {name}")
    return shapes + absent


def _with_tied(state: Any, module: nn.Module) -> Any:
    """A state with all names of each tied tensor: some files have only one of them."""
    names: dict[int, list[str]] = {}
    for name, tensor in unwrap(module).state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            names.setdefault(id(tensor), []).append(name)
    same = renamed(state, str)
    for tied in names.values():
        there = [name for name in tied if name in state]
        same.update({name: state[there[0]] for name in tied if there and name not in state})
    return same


def _loads(state: Any, module: nn.Module) -> bool:
    """Whether a module loads a state with other names or shapes: some convert their older forms."""
    try:
        same = copy.deepcopy(unwrap(module))
        same.load_state_dict(state)
    except Exception:
        return False
    own = same.state_dict()
    return all(_fits(key, value, own) for key, value in state.items() if key in own)


def _nothing_fits(name: str, state: Any, own: Any, path: PathLike) -> str:
    return (
        f"nothing in {state_key(name)} of {path} fits the {name}, even with strict=False: the file "
        f"has {', '.join([*state][:3])}, ..., the {name} {', '.join([*own][:3])}, ...; make the "
        f"{name} as it was when it was saved (with its adapters), rename the weights in the file, "
        f"or leave out {name}"
    )


def _hint(state: Any, own: Any) -> str:
    """A hint at `prefix=`, if all names of the object are in the file after one prefix."""
    first = next(iter(own), "")
    begins = (name.removesuffix(first) for name in state if name.endswith(f".{first}"))
    for prefix in begins:
        if all(prefix + name in state for name in own):
            return f"; in the file these names begin with {prefix!r}: pass prefix={prefix!r}"
    return ""


def _told(found: list[str], name: str, otherwise: str = "to load what fits") -> str:
    more = f"; and {len(found) - 8} more" if len(found) > 8 else ""
    remedy = f"make the {name} as it was when it was saved, or pass strict=False {otherwise}"
    return f"{'; '.join(found[:8])}{more}; {remedy}"


def _fits(key: str, value: Any, own: Any) -> bool:
    mine = own.get(key)
    if not (isinstance(value, Tensor) and isinstance(mine, Tensor)):  # a module's extra state
        return key in own and isinstance(value, Tensor) == isinstance(mine, Tensor)
    if is_lazy(mine):
        return True
    same_kind = value.is_floating_point() == mine.is_floating_point()
    return value.shape == mine.shape and same_kind and value.is_complex() == mine.is_complex()


def _difference(value: Any, own: Any) -> tuple[object, object]:
    if not (isinstance(value, Tensor) and isinstance(own, Tensor)):
        return type(value).__name__, type(own).__name__
    if value.shape != own.shape:
        return tuple(value.shape), tuple(own.shape)
    return value.dtype, own.dtype


def _put_all(parts: dict[str, Any], states: dict[str, Any], path: PathLike, strict: bool) -> None:
    """Load every state, or leave every object as it was."""
    modules = [name for name, part in parts.items() if isinstance(part, nn.Module)]
    bare = {name: unwrap(part) if name in modules else part for name, part in parts.items()}
    with ExitStack() as undo:
        for name in modules:
            for meta, real in _realised(bare[name], states[name], path):
                undo.callback(swap_tensors, meta, real)
        # Modules come last: they are known to fit, but other objects may still refuse their state.
        for name in sorted(parts, key=lambda name: name in modules):
            part = bare[name]
            options = {} if strict or name not in modules else {"strict": False}
            try:
                _check_real(part)
                undo.callback(_way_back(part))
                part.load_state_dict(states[name], **options)
            except Exception as error:
                why = f"it has no {error}" if isinstance(error, KeyError) else error
                raise CheckpointError(f"{state_key(name)} in {path} does not fit: {why}") from error
        undo.pop_all()


def _way_back(part: Any) -> Callable[[], Any]:
    """A function that gives an object its present state again."""
    if not is_loader(part):
        return functools.partial(part.load_state_dict, part.state_dict())
    before = dict(vars(part))

    def put_back() -> None:
        vars(part).clear()
        vars(part).update(before)

    return put_back


def _realised(module: nn.Module, state: Any, path: PathLike) -> Iterator[tuple[Tensor, Tensor]]:
    """Give memory to the tensors on the meta device that the state has.

    They stay the same objects, since optimizers and other modules may hold them. Swapping each
    returned pair again undoes it.
    """
    named = chain(
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    )
    for name, tensor in named:
        if not (tensor.is_meta and isinstance(state.get(name), Tensor)) or is_lazy(tensor):
            continue
        device = _home(tensor) if is_dtensor(tensor) else state[name].device
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
    groups = param_groups(part)
    if any(
        getattr(parameter, "is_meta", False) for group in groups for parameter in group["params"]
    ):
        raise ValueError(
            "its parameters are on the meta device; load the model first, or in the same call"
        )
