"""Read a checkpoint, and load its states into the objects of a program: all, or none."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from batteries import distributed
from batteries._device import known_device
from batteries._files import PathLike
from batteries._memory import has_state_before_loading, memory_of
from batteries._modules import unwrap
from batteries._warnings import warn
from batteries.checkpoint._contents import (
    Checkpoint,
    Stateful,
    beside,
    check_stateful,
    rebuilt,
    state_key,
    state_of,
)
from batteries.checkpoint._latest import newest_first
from batteries.checkpoint._load_putting import param_groups
from batteries.checkpoint._load_states import LoadReport, find, put_in
from batteries.checkpoint._read import checkpoint_of, opened
from batteries.checkpoint._read_outline import CheckpointError
from batteries.checkpoint._seal import digest_read
from batteries.checkpoint._write import leaves_of
from batteries.distributed._agreement import check_same
from batteries.distributed._messages import is_sharded as is_dtensor

_compared: set[str] = set()  # paths that were compared with other ranks when first loaded
_SHARE = "use a directory that all hosts share, or call share_checkpoint first, on all ranks"


class Loaded(dict[str, Any]):
    """What a checkpoint holds, and a report of what was loaded.

    >>> model = nn.Linear(2, 1)
    >>> save_checkpoint(make_checkpoint("train", 3, model), "last.pth")
    >>> load_checkpoint("last.pth", model).report.loaded
    ['model.weight', 'model.bias']
    """

    report = LoadReport([], [], [], [])

    def __deepcopy__(self, memo: dict[int, Any]) -> Loaded:
        copied = Loaded(copy.deepcopy(dict(self), memo))
        copied.report = self.report
        return copied

    def __copy__(self) -> Loaded:
        copied = Loaded(self)
        copied.report = self.report
        return copied

    copy = __copy__

    def __reduce__(self) -> Any:  # `torch.load` reads an OrderedDict, but not this class
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
    together: bool = False,
    **objects: Stateful,
) -> Loaded:
    """Read a checkpoint and put the state it holds into the objects that are passed.

    >>> model = nn.Linear(2, 1)
    >>> save_checkpoint(make_checkpoint("train", 3, model), "last.pth")
    >>> load_checkpoint("last.pth", model)["epoch"]
    3

    The file is verified first. Then every state is compared with its object. Objects change only
    if all of them fit.

    - A file saved from a bare model loads into a DDP, DataParallel or compiled one, and the other
      way round.
    - A model on the meta device gets its memory here: in its own dtypes, on `map_location`. Its
      parameters stay the same objects, so an optimizer can keep them.
    - These load too: the state dict of a model, `.safetensors`, the Hub's
      `model.safetensors.index.json` and `pytorch_model.bin.index.json`, `{"state_dict": ...}`
      (Lightning, timm) and `{"model": ...}` (torchvision, nanoGPT).
    - A sharded checkpoint loads into objects that are sharded in another way, or not at all. A
      file loads into sharded objects. In both cases, call the function on all ranks.

    If you pass objects, the tensors in the states of other objects are not read: in the result
    they are on the meta device, as in `peek`. If you pass no object, everything is read.

    Args:
        path: A file, a sharded checkpoint such as `last.dcp`, or an index of the Hub.
        model, optimizer, scheduler: The objects that get these states.
        strict: False loads only the parameters that fit, and the states of other objects that fit.
            If the file has no state for an object, that is an error also with False.
        prefix: Load only the weights whose names begin with this text, such as "encoder.". The
            prefix is removed before the names are compared with those of the model. Names of
            wrappers, such as "module." and "_orig_mod.", do not matter.
        key: Which of the file's weights `model` gets: "ema" for the average that was saved as
            `ema=`, or by timm and torchvision.
        map_location: The device of the tensors in the result. The objects stay on their devices.
        together: If True, all ranks call it, with the same file. Each rank reads what its objects
            need, and verifies a part of the rest. An error on one rank is raised on all. If False,
            each rank verifies the whole file, and one rank may load alone.
        **objects: Other objects, by the names that they had in `make_checkpoint`.

    Returns:
        Everything in the file. Its `report` says what was loaded, and what did not fit.

    Raises:
        FileNotFoundError: No such file.
        TypeError: An object without a state, or an option of another type.
        CheckpointError: Damaged, not a checkpoint, or keys, shapes or types that do not fit.
        ValueError: An unknown `map_location`.
        RuntimeError: The ranks read different files when they first load this path.
        ModuleNotFoundError: The file needs safetensors, which is not installed.
    """
    options = ("strict", strict, bool), ("prefix", prefix, str), ("key", key, str)
    for name, option, kind in (*options, ("together", together, bool)):
        if not isinstance(option, kind):
            raise TypeError(
                f"{name} is a {type(option).__name__}; expected a {kind.__name__}: it is an option "
                "of load_checkpoint, so no object can have this name"
            )
    parts = _given(model, optimizer, scheduler, objects)
    known = str(path) in _compared
    _compared.add(str(path))  # later one rank may load the path alone, with another content
    asked = _Asked(parts, key, known_device(map_location))
    put = functools.partial(put_in, parts=parts, path=path, strict=strict, prefix=prefix, key=key)
    if together:
        read = functools.partial(_alike, asked, path, together=True)
        loaded = distributed.together(read)
        loaded.report = distributed.together(functools.partial(put, loaded))
        return loaded
    loaded = asked.read(path) if known else _alike(asked, path)
    loaded.report = put(loaded)
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
    """Load the newest good checkpoint of a directory. Returns None if there is none yet.

    >>> model = nn.Linear(2, 1)
    >>> last = resume("runs/line", model)
    >>> first_epoch = last["epoch"] + 1 if last else 1

    So the same command starts, restarts and continues an experiment. Call `resume` on all ranks:
    they load the same checkpoint. If a checkpoint is damaged, `resume` warns and takes an older
    one.

    If there is no checkpoint, `resume` calls `start_over()` of the objects that have it. So, if a
    run was killed before its first checkpoint, loggers put its old lines aside.

    Args:
        map_location: As for `load_checkpoint`.
        **objects: As for `load_checkpoint`. If the checkpoint has a state for which no object is
            passed, `resume` warns.

    Raises:
        CheckpointError: All checkpoints are damaged, or the newest good one does not fit.
        TypeError: An object without a state.
        ValueError: An unknown `map_location`.
        NotADirectoryError: `logdir` is a file, or a checkpoint itself.
        RuntimeError: The ranks have different files in this directory. The error names the hosts.
    """
    parts = _given(model, optimizer, scheduler, objects)
    asked = _Asked(parts, "model", known_device(map_location))

    def look() -> list[Path]:
        paths = newest_first(logdir)
        there = "it has checkpoints" if paths else "it has no checkpoints"
        check_same("the directory of resume", there, _SHARE)
        return paths

    paths = distributed.broadcast(distributed.together(look))
    for path in paths:
        try:
            checkpoint = distributed.together(functools.partial(_alike, asked, path, together=True))
        except CheckpointError as error:
            if path == paths[-1]:
                raise CheckpointError(_none_can_be_read(paths, logdir, error)) from error
            warn(f"{error}; an older one is taken")
            continue
        loading = functools.partial(put_in, checkpoint, parts, path)
        checkpoint.report = distributed.together(loading)
        states = {
            key.removesuffix("_state_dict") for key in checkpoint if key.endswith("_state_dict")
        }
        for name in sorted(each for each in states - set(parts) if "." not in each):
            warn(
                f"{path} has {state_key(name)}, but resume got no {name}=: this object is not "
                "loaded, and starts from its beginning",
            )
        return checkpoint
    for part in parts.values():
        if hasattr(part, "start_over"):
            part.start_over()
    return None


def _none_can_be_read(paths: list[Path], logdir: PathLike, error: CheckpointError) -> str:
    if len(paths) == 1:
        told = f"the only checkpoint in {logdir} cannot be read; move it away"
    else:
        told = f"none of the {len(paths)} checkpoints in {logdir} can be read; move them away"
    return f"{told} to start from the beginning; the last error is: {error}"


def _alike(asked: _Asked, path: PathLike, *, together: bool = False) -> Loaded:
    """Read a checkpoint. Raise if other ranks, which read it too, have another file."""
    there = "there" if Path(path).exists() else "missing"
    same = functools.partial(check_same, f"{path}", there, _SHARE)
    distributed.together(same) if together else same()
    loaded = asked.read(path, together=together)
    if (digest := digest_read(path)) is not None:
        check_same(f"the content of {path}", digest, _SHARE)
    return loaded


def _given(model: Any, optimizer: Any, scheduler: Any, objects: dict[str, Any]) -> dict[str, Any]:
    """The objects by name; modules without their wrappers."""
    given = {"model": model, "optimizer": optimizer, "scheduler": scheduler, **objects}
    parts = {name: part for name, part in given.items() if part is not None}
    for name, part in parts.items():
        check_stateful(name, part)
        parts[name] = unwrap(part) if isinstance(part, nn.Module) else part
    for name in objects.keys() & parts.keys():
        parts |= dict(beside(name, parts[name])) | {name: memory_of(parts[name])}
    return parts


class _Asked:
    """Which tensors of a checkpoint are read, and onto which devices."""

    def __init__(self, parts: dict[str, Any], key: str, device: torch.device) -> None:
        self._names, self._key = list(parts), key
        self._device = None if device.type == "meta" else device
        self._shared: dict[str, Tensor] = {}  # DTensors of the objects, by their places
        for name, part in parts.items():
            if has_state_before_loading(part):
                rebuilt({state_key(name): state_of(part)}, self._keep)
            # An optimizer has no state before its first step. Most tensors of its later state are
            # divided as its parameters are.
            parameters = [p for group in param_groups(part) for p in group["params"]]
            for index, parameter in enumerate(parameters):
                self._keep(parameter, f"{state_key(name)}.state[{index}]")

    def read(self, path: PathLike, *, together: bool = False) -> Loaded:
        """The verified checkpoint. With `together`, all ranks call it."""
        with ExitStack() as files:

            def begin() -> tuple[Any, Checkpoint, Any]:
                file = files.enter_context(opened(path))
                contents = checkpoint_of(file.contents, path, file.sealed)
                wanted = [find(contents, name, self._key) for name in self._names]
                left_out = _tensors_in(_states_in(contents)) - _tensors_in(wanted)

                def where(place: str, tensor: Tensor) -> torch.device | Tensor | None:
                    if self._names and id(tensor) in left_out:
                        return None
                    shared = self._like(place, tensor)
                    return self._device if shared is None else shared

                return file, contents, file.read(where)

            file, contents, found = distributed.together(begin) if together else begin()
            file.verify(together=together)
        bare = found.keys() != contents.keys()
        return Loaded({"model_state_dict": found} if bare else found)

    def _keep(self, value: Any, place: str) -> Any:
        if is_dtensor(value):
            self._shared[place] = value
        return value

    def _like(self, place: str, tensor: Tensor) -> Tensor | None:
        """The object's own DTensor of that place and shape, or the parameter it belongs to."""
        for known in (place, place.rpartition(".")[0]):
            own = self._shared.get(known)
            if own is not None and own.shape == tensor.shape:
                return own
        return None


def _states_in(checkpoint: Checkpoint) -> list[Any]:
    """The states of objects. In files of other libraries, all values but tensors count."""
    ours = [value for key, value in checkpoint.items() if key.endswith("_state_dict")]
    return ours or [value for value in checkpoint.values() if not isinstance(value, Tensor)]


def _tensors_in(value: Any) -> set[int]:
    return {id(leaf) for leaf in leaves_of(value) if isinstance(leaf, Tensor)}
