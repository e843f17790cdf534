"""Put what a checkpoint holds into the objects of a program: all of it, or nothing."""

from __future__ import annotations

import copy
import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import swap_tensors

from batteries import distributed
from batteries._device import known_device
from batteries._files import PathLike
from batteries._memory import memory_of
from batteries._modules import sharded_like, unwrap
from batteries.checkpoint._contents import (
    Checkpoint,
    Stateful,
    bare_name,
    check_stateful,
    rebuilt,
    renamed,
    state_key,
    state_of,
)
from batteries.checkpoint._load_fitting import misfits
from batteries.checkpoint._read import checkpoint_of, named_weights, newest_first, opened
from batteries.checkpoint._read_outline import CheckpointError
from batteries.checkpoint._seal import digest_read
from batteries.checkpoint._write_archive import leaves_of
from batteries.distributed._agreement import check_same
from batteries.distributed._messages import is_sharded as is_dtensor

_compared: set[str] = set()  # paths whose first contents were compared with other ranks
_SHARE = "use a directory that all hosts share, or send rank 0's with share_checkpoint first"


class LoadReport(NamedTuple):
    """What `load_checkpoint` put into the objects, and, with `strict=False`, what did not fit.

    >>> LoadReport(loaded=[], missing=["model.bias"], unexpected=[], mismatched=[]).missing
    ['model.bias']

    The lists have the names of parameters and buffers, after the name of their object. An
    optimizer, scheduler or scaler whose state does not fit stays as it was, and the places that do
    not fit are in the lists, such as `optimizer.state[0].exp_avg`.
    """

    loaded: list[str]
    missing: list[str]  # in the object alone
    unexpected: list[str]  # in the file alone
    mismatched: list[str]  # of another shape, or integers for floats


class Loaded(dict[str, Any]):
    """A checkpoint that was loaded: what the file holds, and what became of it.

    >>> model = nn.Linear(2, 1)
    >>> save_checkpoint(make_checkpoint("train", 3, model), "last.pth")
    >>> load_checkpoint("last.pth", model).report.loaded
    ['model.weight', 'model.bias']
    """

    report: LoadReport

    def __reduce__(self) -> Any:  # `torch.load` knows no other dicts
        return OrderedDict, (list(self.items()),)


def load_checkpoint(
    path: PathLike,
    model: nn.Module | None = None,
    optimizer: Stateful | None = None,
    scheduler: Stateful | None = None,
    *,
    strict: bool = True,
    prefix: str = "",
    key: str = "model",
    map_location: torch.device | str = "cpu",
    **objects: Stateful,
) -> Loaded:
    """Read a checkpoint and put the state it holds into the objects that are passed.

    >>> model = nn.Linear(2, 1)
    >>> save_checkpoint(make_checkpoint("train", 3, model), "last.pth")
    >>> load_checkpoint("last.pth", model)["epoch"]
    3

    The file is verified first. Then every part is held against its object, and only when all of
    them fit does the first one change. Wrappers do not matter: a file saved from a bare model
    loads into a DDP, DataParallel or compiled one, and the other way round. A model on the meta
    device gets its memory here, in its own dtypes, where `map_location` says; its parameters stay
    the same objects, so that an optimizer that has them goes on with them. A file that is the
    state dict of a model loads too, and so do `.safetensors` weights, the Hub's
    `model.safetensors.index.json`, and what others write: `{"state_dict": ...}` (Lightning, timm)
    and `{"model": ...}` (torchvision, nanoGPT). A sharded checkpoint loads
    into objects that are sharded in another way, or not at all, and a file into sharded ones; all
    ranks call it then.

    Only what was asked for takes memory. The tensors of states for which no object is passed are
    on the meta device in what is returned, as `peek` has them. Without any object all are read.

    Args:
        strict: False loads the parameters, and the states of other objects, that fit.
        prefix: Load the part of the file's model whose names begin so: "encoder.".
        key: Which of the file's weights `model` gets: "ema" for the average that was saved as
            `ema=`, or that timm and torchvision have saved.
        map_location: Where the tensors of the returned checkpoint lie. The state goes to where
            the objects are in any case.
        **objects: Others, by the names they had in `make_checkpoint`.

    Returns:
        Everything in the file. Its `report` says what was loaded, and what did not fit.

    Raises:
        FileNotFoundError: No such file.
        TypeError: An object without a state.
        CheckpointError: Damaged, not a checkpoint, or keys, shapes or types that do not fit.
        RuntimeError: The ranks have read different files, when they first load this path.
    """
    options = ("strict", strict, bool), ("prefix", prefix, str), ("key", key, str)
    for name, option, kind in options:
        if not isinstance(option, kind):
            raise TypeError(
                f"{name} is a {type(option).__name__}; expected a {kind.__name__}: it is an option "
                "of load_checkpoint, so no object can be called so"
            )
    parts = _given(model, optimizer, scheduler, objects)
    known = str(path) in _compared
    _compared.add(str(path))  # later one rank alone may load what has another content by then
    asked = _Asked(parts, key, known_device(map_location))
    loaded = asked.read(path) if known else _alike(asked, path)
    loaded.report = _put(loaded, parts, path, strict=strict, prefix=prefix, key=key)
    return loaded


def resume(
    logdir: PathLike,
    model: nn.Module | None = None,
    optimizer: Stateful | None = None,
    scheduler: Stateful | None = None,
    *,
    map_location: torch.device | str = "cpu",
    **objects: Stateful,
) -> Loaded | None:
    """Load the newest good checkpoint of a directory; None where there is none yet.

    >>> model = nn.Linear(2, 1)
    >>> last = resume("runs/line", model)
    >>> first_epoch = last["epoch"] + 1 if last else 1

    The same command then starts, restarts and continues an experiment. All ranks call it, and
    load the same checkpoint. A damaged one is warned about, and an older one taken. Where there is
    none, objects that have a `start_over` are told by it: loggers put aside what a run logged that
    was killed before its first checkpoint.

    Args:
        **objects: As for `load_checkpoint`. A state in the checkpoint for which no object is
            passed is warned about.

    Raises:
        CheckpointError: All checkpoints are damaged, or the newest good one does not fit.
        NotADirectoryError: `logdir` is a checkpoint itself.
        RuntimeError: The ranks have different files in this directory; it says which hosts.
    """
    parts = _given(model, optimizer, scheduler, objects)
    asked = _Asked(parts, "model", known_device(map_location))
    paths = newest_first(logdir)
    there = "it has checkpoints" if paths else "it has no checkpoints"
    distributed.together(lambda: check_same("the directory of resume", there, _SHARE))
    paths = distributed.broadcast(paths)
    for path in paths:
        try:
            checkpoint = distributed.together(functools.partial(_alike, asked, path, together=True))
        except CheckpointError as error:
            warnings.warn(f"{error}; an older one is taken", stacklevel=2)
            continue
        put = functools.partial(_put, checkpoint, parts, path)
        checkpoint.report = distributed.together(put)
        states = {
            key.removesuffix("_state_dict") for key in checkpoint if key.endswith("_state_dict")
        }
        for name in sorted(states - set(parts)):
            warnings.warn(
                f"{path} has {state_key(name)}, but no {name}= was given to resume: what it was "
                "goes on from its beginning",
                stacklevel=2,
            )
        return checkpoint
    if paths:
        raise CheckpointError(
            f"none of the {len(paths)} checkpoints in {logdir} can be read; move them away to "
            "start anew"
        )
    for part in parts.values():
        if hasattr(part, "start_over"):
            part.start_over()
    return None


def _alike(asked: _Asked, path: PathLike, *, together: bool = False) -> Loaded:
    """A checkpoint that is the same on all ranks which read it now."""
    check_same(f"{path}", "there" if Path(path).exists() else "missing", _SHARE)
    loaded = asked.read(path, together=together)
    if (digest := digest_read(path)) is not None:
        check_same(f"the content of {path}", digest, _SHARE)
    return loaded


def _given(model: Any, optimizer: Any, scheduler: Any, objects: dict[str, Any]) -> dict[str, Any]:
    given = {"model": model, "optimizer": optimizer, "scheduler": scheduler, **objects}
    parts = {name: part for name, part in given.items() if part is not None}
    for name, part in parts.items():
        check_stateful(name, part)
    return {name: memory_of(part) for name, part in parts.items()}


def _put(
    checkpoint: Checkpoint,
    parts: dict[str, Any],
    path: PathLike,
    *,
    strict: bool = True,
    prefix: str = "",
    key: str = "model",
) -> LoadReport:
    """Hold each part against its object, and put all of them in if all fit."""
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
    """The state of an object; raise if there is none."""
    found = _find(checkpoint, name, key)
    wanted = key if name == "model" else name
    if found is None and state_key(wanted) not in checkpoint:
        remedy = f"leave out {name}, or load the checkpoint of a run that saved it"
        if name == "model":
            remedy = 'pass key="..." with the name of weights that it has, or ' + remedy
        raise CheckpointError(
            f"{path} has no {state_key(wanted)}; it has {', '.join(map(str, checkpoint))}; {remedy}"
        )
    return found


def _find(checkpoint: Checkpoint, name: str, key: str) -> Any:
    """The state of an object, as this library or another one calls it; None if there is none."""
    if name == "model" and key != "model":
        return named_weights(checkpoint, key)
    if state_key(name) in checkpoint:
        return checkpoint[state_key(name)]
    return named_weights(checkpoint, name)


class _Asked:
    """What is read of a checkpoint, and where it goes: only to objects that were passed."""

    def __init__(self, parts: dict[str, Any], key: str, device: torch.device) -> None:
        self._names, self._key = list(parts), key
        self._device = None if device.type == "meta" else device
        self._shared: dict[str, Tensor] = {}  # tensors of objects that the ranks share, by places
        for name, part in parts.items():
            if not _is_loader(part):
                rebuilt({state_key(name): state_of(part)}, self._keep)
            # An optimizer has its states only after the first step: most are like its parameters.
            parameters = [p for group in _param_groups(part) for p in group["params"]]
            for index, parameter in enumerate(parameters):
                self._keep(parameter, f"{state_key(name)}.state[{index}]")

    def read(self, path: PathLike, *, together: bool = False) -> Loaded:
        """The checkpoint, verified; all ranks call it together, or one alone."""
        with opened(path) as file:
            contents = checkpoint_of(file.contents, path, file.sealed)
            wanted = [_find(contents, name, self._key) for name in self._names]
            left_out = _tensors_in(_states_in(contents)) - _tensors_in(wanted)

            def where(place: str, tensor: Tensor) -> torch.device | Tensor | None:
                if self._names and id(tensor) in left_out:
                    return None
                shared = self._like(place, tensor)
                return self._device if shared is None else shared

            found = file.read(where)
            file.verify(together=together)
        bare = found.keys() != contents.keys()
        return Loaded({"model_state_dict": found} if bare else found)

    def _keep(self, value: Any, place: str) -> Any:
        if is_dtensor(value):
            self._shared[place] = value
        return value

    def _like(self, place: str, tensor: Tensor) -> Tensor | None:
        """The object's own tensor of that place and shape, or the parameter that it belongs to."""
        for known in (place, place.rpartition(".")[0]):
            own = self._shared.get(known)
            if own is not None and own.shape == tensor.shape:
                return own
        return None


def _states_in(checkpoint: Checkpoint) -> list[Any]:
    """The states of objects: what is called so, or in files of others all that is no number."""
    ours = [value for key, value in checkpoint.items() if key.endswith("_state_dict")]
    return ours or [value for value in checkpoint.values() if not isinstance(value, Tensor)]


def _tensors_in(value: Any) -> set[int]:
    return {id(leaf) for leaf in leaves_of(value) if isinstance(leaf, Tensor)}


def _home(tensor: Any) -> torch.device | str:
    """Where the numbers of a tensor belong, also of a sharded one that has none yet."""
    return str(tensor.device_mesh.device_type) if is_dtensor(tensor) else tensor.device


def _under_own_names(state: Any, own: Any, prefix: str) -> Any:
    """A state dict under the names that its object has, whatever it was wrapped in when saved."""
    if prefix:
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    names = {bare_name(key): key for key in own}
    if len(names) < len(own):  # the object's names differ in what wrappers add: they are its own
        return state
    names |= {bare_name(module): module for module in getattr(own, "_metadata", {})}
    return renamed(state, lambda key: names.get(bare_name(key), key))


def _compare(name: str, state: Any, own: Any, path: PathLike, report: LoadReport) -> list[str]:
    """Sort the names into the report, and tell what does not fit."""
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
    """A state with all names of a tensor that the module has under several: some write one."""
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
    """Whether a module takes a state with other names or shapes: some know their older forms."""
    try:
        same = copy.deepcopy(unwrap(module))
        same.load_state_dict(state)
    except Exception:
        return False
    own = same.state_dict()
    return all(_fits(key, value, own) for key, value in state.items() if key in own)


def _nothing_fits(name: str, state: Any, own: Any, path: PathLike) -> str:
    return (
        f"nothing in {state_key(name)} of {path} fits the {name}, also with strict=False: the file "
        f"has {', '.join([*state][:3])}, ..., the {name} {', '.join([*own][:3])}, ...; make the "
        f"{name} as it was when it was saved (with its adapters), rename what the file has, or "
        "leave it out"
    )


def _hint(state: Any, own: Any) -> str:
    """Which prefix the names of a file have, if they all have one."""
    first = next(iter(own), "")
    begins = (name.removesuffix(first) for name in state if name.endswith(f".{first}"))
    for prefix in begins:
        if all(prefix + name in state for name in own):
            return f"; the file has these names behind {prefix!r}: pass prefix={prefix!r}"
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
        # Modules come last: they are known to fit, while others may still refuse their state.
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
    """What makes an object the one that it was."""
    if not _is_loader(part):
        return functools.partial(part.load_state_dict, part.state_dict())
    before = dict(vars(part))

    def put_back() -> None:
        vars(part).clear()
        vars(part).update(before)

    return put_back


def _is_loader(part: Any) -> bool:
    """Some begin a pass when they are asked for their state, and what they load then is lost."""
    kind = isinstance(part, Iterable) and not isinstance(part, Container | nn.Module)
    return kind and hasattr(part, "__dict__")


def _realised(module: nn.Module, state: Any, path: PathLike) -> Iterator[tuple[Tensor, Tensor]]:
    """Give memory to the tensors on the meta device for which there are numbers.

    They stay the same objects, which optimizers and other modules may have; to swap them back is
    to undo it.
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
                f"{name} is on the meta device and cannot get the numbers of {path}, since others "
                f"refer to it: call model.to_empty(device=...) before loading ({error})"
            ) from error
        yield tensor, other


def _param_groups(part: Any) -> list[Any]:
    found = getattr(part, "param_groups", None)  # ignite's metrics have any name that is asked for
    return found if isinstance(found, list) else []


def _check_real(part: Any) -> None:
    """Raise if the state of an optimizer would go to where there are no numbers."""
    groups = _param_groups(part)
    if any(
        getattr(parameter, "is_meta", False) for group in groups for parameter in group["params"]
    ):
        raise ValueError(
            "its parameters are on the meta device; load the model in the same call, or before it"
        )
