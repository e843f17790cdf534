"""Checkpoints: what they hold, how they are stored and loaded, and which of them are kept."""

from __future__ import annotations

import json
import math
import warnings
from argparse import Namespace
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from batteries import distributed
from batteries.files import PathLike, link_or_copy, make_directory, write_whole
from batteries.modules import unwrap

Checkpoint = dict[str, Any]


class CheckpointError(ValueError):
    """A file that is not a checkpoint, or not one for these objects."""


class Stateful(Protocol):
    """Whatever has a memory: models, optimizers, schedulers, scalers, meters, loaders."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state_dict: Any) -> Any: ...


def make_checkpoint(
    stage: str | int,
    epoch: int,
    model: nn.Module,
    optimizer: Stateful | None = None,
    scheduler: Stateful | None = None,
    metrics: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Checkpoint:
    """Collect the state of an experiment as a dictionary of plain values and tensors.

    >>> checkpoint = make_checkpoint("train", 3, nn.Linear(2, 1), metrics={"loss": 0.5}, seed=42)
    >>> list(checkpoint)
    ['stage', 'epoch', 'model_state_dict', 'metrics', 'seed']

    The model is saved without its wrappers (DDP, DataParallel, torch.compile). Call
    `scheduler.step()` first: a scheduler saved before its step is one step behind when resumed.

    Args:
        **kwargs: Stored under their names. Those with a `state_dict()` (an EMA, a GradScaler) are
            stored through it, as `{name}_state_dict`. Paths become strings, namespaces
            dictionaries, numpy scalars numbers and numpy arrays tensors.
    """
    checkpoint: Checkpoint = {"stage": stage, "epoch": epoch}
    objects = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    checkpoint |= {_key(name): _state(part) for name, part in objects.items() if part is not None}
    if metrics is not None:
        checkpoint["metrics"] = metrics
    for name, value in kwargs.items():
        if callable(getattr(type(value), "state_dict", None)):
            checkpoint[_key(name)] = _state(value)
        else:
            checkpoint[name] = value
    return dict(_plain(checkpoint, "", _leave))


def save_checkpoint(checkpoint: Mapping[str, Any], path: PathLike) -> None:
    """Write a checkpoint so that the file is complete or absent, whatever happens meanwhile.

    >>> save_checkpoint(make_checkpoint("train", 1, nn.Linear(2, 1)), "last.pth")
    >>> torch.load("last.pth")["epoch"]
    1

    Plain `torch.load(path)` opens it anywhere. Call it on one rank.

    Raises:
        TypeError: A value that `torch.load` would refuse to read, with its place.
    """
    plain = _plain(checkpoint, "", _refuse)
    with write_whole(path) as file:
        torch.save(plain, file)


def load_checkpoint(
    path: PathLike,
    model: nn.Module | None = None,
    optimizer: Stateful | None = None,
    scheduler: Stateful | None = None,
    *,
    map_location: torch.device | str = "cpu",
    **objects: Stateful,
) -> Checkpoint:
    """Read a checkpoint and put the state it holds into the objects that are passed.

    >>> model = nn.Linear(2, 1)
    >>> save_checkpoint(make_checkpoint("train", 3, model), "last.pth")
    >>> load_checkpoint("last.pth", model)["epoch"]
    3

    Wrappers do not matter: a file saved from a bare model loads into a DDP, DataParallel or
    compiled one, and the other way round. A file that is the state dict of a model loads too.
    All parts are looked at before the first of them changes.

    Args:
        map_location: Where the tensors of the returned checkpoint lie. The state goes to where
            the objects are in any case.
        **objects: Others, by the names they had in `make_checkpoint`.

    Returns:
        Everything in the file.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: Not a checkpoint, or keys or shapes that do not fit.
    """
    checkpoint = _read(Path(path), map_location)
    given = {"model": model, "optimizer": optimizer, "scheduler": scheduler, **objects}
    parts = {name: part for name, part in given.items() if part is not None}
    states = {name: _state_for(name, part, checkpoint, path) for name, part in parts.items()}
    for name in sorted(parts, key=lambda name: isinstance(parts[name], nn.Module)):
        # Modules come last: they are known to fit, while an optimizer may still refuse its state.
        try:
            _bare(parts[name]).load_state_dict(states[name])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{_key(name)} in {path} does not fit: {error}") from error
    return checkpoint


class CheckpointManager:
    """Keep the checkpoints that matter: the last one, the best one, the best few.

    >>> manager = CheckpointManager("runs/digits/checkpoints", metric="accuracy",
    ...                             metric_minimization=False, save_n_best=3)
    >>> checkpoint = make_checkpoint("train", 1, nn.Linear(2, 1))
    >>> manager.process(score=0.93, epoch=1, checkpoint=checkpoint)
    >>> sorted(path.name for path in manager.logdir.iterdir())
    ['best.pth', 'exp_1.pth', 'last.pth', 'metrics.json']

    `exp_{epoch}.pth` are the best few; `best.pth` and `last.pth` are hard links: each epoch's data
    is written once. `metrics.json` holds the scores of all epochs and is the manager's memory: a
    new manager on the same directory goes on where the last one stopped.

    Args:
        logdir: Created when the first checkpoint is written.
        metric: The name of the score that decides.
        metric_minimization: Whether lower is better.
        save_n_best: How many `exp_*.pth` to keep; 0 keeps `best.pth` and `last.pth` alone.

    Raises:
        ValueError: The directory has the scores of another metric.
        NotADirectoryError: `logdir` is a file.
    """

    def __init__(
        self,
        logdir: PathLike,
        metric: str = "loss",
        metric_minimization: bool = True,
        save_n_best: int = 5,
    ) -> None:
        if save_n_best < 0:
            raise ValueError(f"save_n_best is {save_n_best}; expected 0 or more")
        self.logdir = Path(logdir)
        self.metric = metric
        self.metric_minimization = metric_minimization
        self.save_n_best = save_n_best
        self.history: list[dict[str, Any]] = self._read_history()

    @property
    def best_path(self) -> Path:
        """Where the best checkpoint is."""
        return self.logdir / "best.pth"

    @property
    def last_path(self) -> Path:
        """Where the last checkpoint is."""
        return self.logdir / "last.pth"

    @property
    def best_score(self) -> float | None:
        """The best score so far; None before the first finite one."""
        ranked = self._ranked()
        return float(ranked[0][self.metric]) if ranked else None

    def process(
        self,
        score: float | Tensor | Mapping[str, float | Tensor],
        epoch: int,
        checkpoint: Mapping[str, Any],
    ) -> None:
        """Save the checkpoint of an epoch, and remove those that are no longer among the best.

        Call it on every rank or on rank 0 alone: global rank 0 writes. NaN and infinities are
        never best; of equal scores the earlier stays. Coming back to an epoch forgets it and what
        came after it.

        Args:
            score: The metric, or a dictionary that has it among others.

        Raises:
            KeyError: The dictionary has no such metric.
            TypeError: A value that cannot be saved, with its place; nothing has changed then.
        """
        epoch, scores = int(epoch), self._scores(score)
        if not distributed.is_main():
            return
        make_directory(self.logdir)
        path = self._path(epoch)
        save_checkpoint(checkpoint, path)
        self.history = [row for row in self.history if row["epoch"] < epoch]
        self.history.append({"epoch": epoch, **scores})
        ranked = [row["epoch"] for row in self._ranked()]
        link_or_copy(path, self.last_path)
        if ranked and self._path(ranked[0]).exists():
            link_or_copy(self._path(ranked[0]), self.best_path)
        self._write_history()
        kept = {self._path(epoch) for epoch in ranked[: self.save_n_best]}
        for old in set(self.logdir.glob("exp_*.pth")) - kept:
            old.unlink()

    def _path(self, epoch: int) -> Path:
        return self.logdir / f"exp_{epoch}.pth"

    def _scores(self, score: float | Tensor | Mapping[str, float | Tensor]) -> dict[str, float]:
        if not isinstance(score, Mapping):
            score = {self.metric: score}
        if self.metric not in score:
            raise KeyError(
                f"the score has no {self.metric!r}, by which {self.logdir} is ranked; "
                f"it has {', '.join(map(repr, score)) or 'nothing'}"
            )
        return {
            name: value.item() if isinstance(value, Tensor) else float(value)
            for name, value in score.items()
        }

    def _ranked(self) -> list[dict[str, Any]]:
        """The epochs with a finite score, best first."""
        finite = [row for row in self.history if math.isfinite(row[self.metric])]
        sign = 1 if self.metric_minimization else -1
        return sorted(finite, key=lambda row: sign * row[self.metric])  # stable: ties stay in order

    def _read_history(self) -> list[dict[str, Any]]:
        path = self.logdir / "metrics.json"
        if self.logdir.exists() and not self.logdir.is_dir():
            make_directory(self.logdir)
        if not path.exists():
            return []
        memory = json.loads(path.read_text())
        ranked_by = (memory["metric_name"], memory["metric_minimization"])
        if ranked_by != (self.metric, self.metric_minimization):
            raise ValueError(
                f"{path} ranks by {ranked_by[0]!r} with metric_minimization={ranked_by[1]}, not by "
                f"{self.metric!r} with {self.metric_minimization}; use another log directory"
            )
        return [
            {name: math.nan if value is None else value for name, value in row.items()}
            for row in memory["values"]
        ]

    def _write_history(self) -> None:
        # JSON has no NaN and no infinities
        values = [
            {name: value if math.isfinite(value) else None for name, value in row.items()}
            for row in self.history
        ]
        memory = {
            "metric_name": self.metric,
            "metric_minimization": self.metric_minimization,
            "values": values,
        }
        with write_whole(self.logdir / "metrics.json") as file:
            file.write(json.dumps(memory, indent=2).encode())


def _key(name: str) -> str:
    return f"{name}_state_dict"


def _bare(part: Any) -> Any:
    return unwrap(part) if isinstance(part, nn.Module) else part


def _state(part: Any) -> Any:
    state = _bare(part).state_dict()
    return _renamed(state, _without_compile) if isinstance(part, nn.Module) else state


# ---------------------------------------------------------------- what may stand in a file

# Read by torch.load(weights_only=True) as they are (torch 2.10 to 2.13)
_ATOMS = (bool, int, float, complex, str, bytes, bytearray, type(None))
_TORCH_ATOMS = (Tensor, nn.Parameter, torch.dtype, torch.device, torch.Size, torch.layout)


def _plain(value: Any, where: str, unknown: Callable[[Any, str], Any]) -> Any:
    """Make plain values of the kinds with an obvious plain form; ask `unknown` about the rest."""

    def items(pairs: Iterable[tuple[Any, Any]]) -> Iterable[tuple[Any, Any]]:
        for key, part in pairs:
            yield _plain(key, where, unknown), _plain(part, _place(where, key), unknown)

    def parts(values: Iterable[Any]) -> Iterable[Any]:
        return (_plain(part, f"{where}[{i}]", unknown) for i, part in enumerate(values))

    kind = type(value)
    if kind is int and value.bit_length() > 2000:  # longer than the reader's number format
        return unknown(value, where)
    if kind in _ATOMS or kind in _TORCH_ATOMS:
        return value
    if kind in (dict, Counter):  # MultiStepLR has a Counter
        return kind(dict(items(value.items())))
    if kind is OrderedDict:  # a state dict carries the versions of its modules as an attribute
        same = OrderedDict(items(value.items()))
        same.__dict__.update(value.__dict__)
        return same
    if kind in (list, tuple, set):
        return kind(parts(value))
    if isinstance(value, Namespace):
        return dict(items(vars(value).items()))
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic) and type(value.item()) in _ATOMS:
        return value.item()
    if isinstance(value, np.ndarray):
        with suppress(TypeError, ValueError):  # strings, objects, foreign byte orders
            return torch.from_numpy(value.copy())
    return unknown(value, where)


def _place(where: str, key: object) -> str:
    if where and isinstance(key, str):
        return f"{where}.{key}" if key.isidentifier() else f"{where}[{key!r}]"
    return f"{where}[{key!r}]" if where else str(key)


def _leave(value: Any, where: str) -> Any:  # noqa: ARG001
    return value


def _refuse(value: Any, where: str) -> Any:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise TypeError(
        f"a checkpoint cannot hold {where or 'this'}, a {kind}: torch.load would refuse the file; "
        "store plain values (numbers, strings, lists, dicts, tensors), or leave it out"
    )


# ---------------------------------------------------------------- what fits what


def _read(path: Path, map_location: torch.device | str) -> Checkpoint:
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; expected a checkpoint file in it")
    if not path.exists():
        beside = sorted(other.name for other in path.parent.glob("*.pth"))
        raise FileNotFoundError(
            f"there is no checkpoint {path}; {path.parent} has {', '.join(beside) or 'none'}"
        )
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of many kinds, as damage has
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {reason}; "
            "it is damaged, or was not written by save_checkpoint or torch.save"
        ) from error
    if isinstance(checkpoint, Mapping) and "model_state_dict" in checkpoint:
        return dict(checkpoint)
    if isinstance(checkpoint, Mapping) and checkpoint and _all_tensors(checkpoint):
        warnings.warn(
            f"{path} is the bare state dict of a model: no epoch, optimizer or metrics in it",
            stacklevel=3,
        )
        return {"model_state_dict": checkpoint}
    found = list(checkpoint) if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
    raise CheckpointError(
        f"{path} is not a checkpoint: expected a dict with 'model_state_dict', or the state dict "
        f"of a model; found {found}"
    )


def _all_tensors(state: Mapping[Any, Any]) -> bool:
    return all(isinstance(value, Tensor) for value in state.values())


def _state_for(name: str, part: Stateful, checkpoint: Checkpoint, path: PathLike) -> Any:
    """The state of one object, under the object's own names."""
    if _key(name) not in checkpoint:
        raise CheckpointError(
            f"{path} has no {_key(name)}; it has {', '.join(checkpoint)}; "
            f"leave out {name}, or load the checkpoint of a run that saved it"
        )
    state = checkpoint[_key(name)]
    if not isinstance(part, nn.Module):
        return state
    own = unwrap(part).state_dict()
    names = {_bare_name(key): key for key in own}
    if len(names) == len(own):
        modules = own._metadata  # type: ignore[attr-defined]
        names |= {_bare_name(module): module for module in modules}
        state = _renamed(state, lambda key: names.get(_bare_name(key), key))
    misfits = [
        f"{_key(name)}[{key!r}] is {_shape(state[key])} in {path} "
        f"but {_shape(own[key])} in the {name}"
        for key in own
        if key in state and not _fits(state[key], own[key])
    ]
    misfits += [f"{_key(name)}[{key!r}] is not in {path}" for key in own if key not in state]
    misfits += [f"{_key(name)}[{key!r}] is not in the {name}" for key in state if key not in own]
    if misfits:
        more = f"; and {len(misfits) - 8} more" if len(misfits) > 8 else ""
        raise CheckpointError(
            "; ".join(misfits[:8]) + more + f"; make the {name} as it was when it was saved"
        )
    return state


def _fits(value: Any, own: Any) -> bool:
    if not (isinstance(value, Tensor) and isinstance(own, Tensor)):  # a module's extra state
        return isinstance(value, Tensor) == isinstance(own, Tensor)
    return is_lazy(own) or value.shape == own.shape


def _shape(value: Any) -> object:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _renamed(state: Any, rename: Callable[[str], str]) -> Any:
    """A state dict under other names, with the versions of its modules."""
    same = OrderedDict((rename(key), value) for key, value in state.items())
    if hasattr(state, "_metadata"):
        versions = OrderedDict((rename(key), value) for key, value in state._metadata.items())
        same._metadata = versions  # type: ignore[attr-defined]
    return same


def _without_compile(name: str) -> str:
    """A parameter's or module's name without what torch.compile adds to it.

    >>> _without_compile("encoder._orig_mod.weight"), _without_compile("encoder._orig_mod")
    ('encoder.weight', 'encoder')
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _bare_name(name: str) -> str:
    """A name without what DDP, DataParallel and torch.compile add to it."""
    return _without_compile(name).removeprefix("module.")
