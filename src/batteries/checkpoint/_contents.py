"""What a checkpoint holds: the states of objects, and plain values."""

from __future__ import annotations

import functools
import io
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pickle import UnpicklingError
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from batteries._configurations import parts_of, plain_value
from batteries._foreign import brief
from batteries._masking import MASK
from batteries._memory import check_remember, memory_of, metrics_inside
from batteries._modules import unwrap
from batteries._seeding import note_checkpoint
from batteries.distributed._messages import is_sharded

Checkpoint = dict[str, Any]


class Stateful(Protocol):
    """An object with `state_dict()` and `load_state_dict(state)`.

    Examples are models, optimizers, schedulers, scalers, meters and loaders.
    """

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state_dict: Any) -> Any: ...


_OPTIONS = {"key", "path", "logdir", "strict", "prefix", "map_location", "together"}


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

    If an object has changed since it was last saved, and its `state_dict()` has not, a warning
    names the attributes that a resumed run will not get back. Modules, objects of installed
    packages, and attributes that are named after times, caches or calls are not looked at.

    Args:
        stage: Your own name or number for this part of the training. It is only stored.
        epoch: The epoch, or the step if there are no epochs.
        model, optimizer, scheduler: Their states are stored as `model_state_dict` and so on.
        metrics: The scores by name, stored as `metrics`.
        **kwargs: Stored under their names. The state of an object that has `state_dict()` (an EMA,
            a GradScaler) is stored as `{name}_state_dict`. A metric of torchmetrics is stored with
            all of its states. The metrics inside another module are stored as
            `{name}.metrics_state_dict`.

    These values become plain, at any depth:

    | kind | becomes |
    |---|---|
    | numpy scalar, array | number or string, tensor |
    | `Path`, `UUID`, `Decimal`, `timedelta`, addresses of pydantic | string |
    | `datetime`, `date`, `time`; `bytearray` | ISO 8601 string; bytes |
    | `Namespace`, dataclass, named tuple, attrs, pydantic, omegaconf, other mappings | dict |
    | `Enum` member | its value |
    | `SecretStr` and other secrets of pydantic | `"***"` |

    Values that `torch.load` reads stay as they are. `save_checkpoint` refuses all others.

    Returns:
        A new dictionary. What was not passed is not in it. It has the tensors of the objects, not
        copies, so save it before the next step.

    Raises:
        TypeError: The model, optimizer or scheduler has no state. Or the state of an object is
            empty, and the object has tensors, or has changed since it was last saved. Or a value
            contains itself.
        ValueError: An object has the name of an option of `load_checkpoint`.
    """
    checkpoint: Checkpoint = {"stage": stage, "epoch": epoch}
    objects = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    saved: dict[str, tuple[Any, Any]] = {}
    for name, part in objects.items():
        if part is not None:
            check_stateful(name, part)
            checkpoint[state_key(name)] = state = state_of(part)
            saved[name] = part, state
    if metrics is not None:
        checkpoint["metrics"] = metrics
    for name, value in kwargs.items():
        if callable(getattr(type(value), "state_dict", None)):
            if name in _OPTIONS:
                raise ValueError(
                    f"an object is called {name!r}, which is an option of load_checkpoint: "
                    "give the object another name"
                )
            checkpoint[state_key(name)] = state = state_of(memory_of(value))
            saved[name] = value, state
            checkpoint |= {state_key(k): each.state_dict() for k, each in beside(name, value)}
        else:
            checkpoint[name] = value
    check_remember(saved)
    note_checkpoint()
    return dict(rebuilt(checkpoint, _plain_or_same))


def state_key(name: str) -> str:
    return f"{name}_state_dict"


def as_checkpoint(checkpoint: Any) -> Mapping[str, Any]:
    if isinstance(checkpoint, Mapping):
        return checkpoint
    raise TypeError(f"the checkpoint is {brief(checkpoint)}; expected what make_checkpoint returns")


def check_stateful(name: str, part: Any) -> None:
    """Raise a TypeError if what a user passed has no state."""
    protocol = ("state_dict", "load_state_dict")
    if name in _OPTIONS:
        raise TypeError(
            f"{name} is an option of load_checkpoint: load_checkpoint(latest(logdir), ..., "
            f"{name}={brief(part)})"
        )
    if isinstance(part, type) or not all(callable(getattr(part, m, None)) for m in protocol):
        hint = ": pass options by name, such as strict=False" if isinstance(part, bool) else ""
        found = repr(part) if len(repr(part)) < 60 else f"a {type(part).__name__}"
        raise TypeError(
            f"{name} is {found}; expected an object with state_dict() and load_state_dict(){hint}"
        )


def state_of(part: Any) -> Any:
    """The state of an object for a checkpoint. A module's wrappers are left out."""
    if not isinstance(part, nn.Module):
        return part.state_dict()
    state, first = unwrap(part).state_dict(), dict[int, Any]()
    for name, tensor in unwrap(part).named_parameters(remove_duplicate=False):
        if is_sharded(tensor) and name in state:  # plain tied tensors are known by their memory
            state[name] = first.setdefault(id(tensor), state[name])
    return renamed(state, without_compile)


def beside(name: str, part: Any) -> Iterator[tuple[str, Any]]:
    """The metrics of torchmetrics in a module, whose state is stored under a name of its own."""
    if isinstance(part, nn.Module) and (metrics := metrics_inside(unwrap(part))):
        yield f"{name}.metrics", metrics


# ---------------------------------------------------------------- plain values

_ATOMS = (bool, int, float, complex, str, bytes, type(None))
# torch.load(weights_only=True) reads these as they are (torch 2.10 to 2.13).
_READABLE = (
    *_ATOMS, Tensor, nn.Parameter, torch.dtype, torch.device, torch.Size, torch.layout,
)  # fmt: skip
Leaf = Callable[[Any, str], Any]  # from a value and its place to a new value


def rebuilt(value: Any, leaf: Leaf) -> Any:
    """The same containers with other leaves. An object that occurs twice stays one object."""
    done: dict[int, tuple[Any, Any]] = {}  # keeps the values, so that no id is used again
    under_way = object()

    def items(pairs: Iterable[tuple[Any, Any]], place: str) -> Iterable[tuple[Any, Any]]:
        for key, part in pairs:
            same_key = key if type(key) is str else rebuild(key, place)
            yield same_key, rebuild(part, _place(place, key))

    def contents(value: Any, place: str) -> Any:
        kind = type(value)
        if kind in (dict, Counter):  # MultiStepLR has a Counter
            return kind(dict(items(value.items(), place)))
        if kind is OrderedDict:  # a state dict has the versions of its modules as an attribute
            same = OrderedDict(items(value.items(), place))
            same.__dict__.update(value.__dict__)
            return same
        if kind in (list, tuple, set):
            return kind([rebuild(part, f"{place}[{i}]") for i, part in enumerate(value)])
        parts = None if isinstance(value, Tensor) else parts_of(value)
        if isinstance(parts, list):
            return [rebuild(part, f"{place}[{i}]") for i, part in enumerate(parts)]
        return leaf(value, place) if parts is None else dict(items(parts.items(), place))

    def rebuild(value: Any, place: str) -> Any:
        if type(value) in _ATOMS:
            return leaf(value, place)
        if id(value) not in done:
            done[id(value)] = value, under_way
            done[id(value)] = value, contents(value, place)
        if done[id(value)][1] is under_way:
            raise TypeError(f"{place or 'a checkpoint'} contains itself")
        return done[id(value)][1]

    return rebuild(value, "")


def _place(place: str, key: object) -> str:
    if place and isinstance(key, str):
        return f"{place}.{key}" if key.isidentifier() else f"{place}[{key!r}]"
    return f"{place}[{key!r}]" if place else str(key)


def _plain_or_same(value: Any, place: str) -> Any:  # noqa: ARG001
    if type(value) in _READABLE:
        return value
    if isinstance(value, np.generic):
        return value.item() if type(value.item()) in _READABLE else value
    if type(value) is np.ndarray:  # a subclass, such as a masked array, has more than numbers
        with suppress(TypeError, ValueError):  # strings, objects, foreign byte orders
            return torch.from_numpy(value.copy())
    if type(value) is bytearray:
        return bytes(value)
    if callable(getattr(type(value), "get_secret_value", None)):  # pydantic's
        return MASK
    return plain_value(value)


def plain_or_refused(value: Any, place: str) -> Any:
    """The value that is written to the file, or a TypeError if `torch.load` would refuse it."""
    plain = _plain_or_same(value, place)
    kind = type(plain)
    found = f"a {kind.__module__}.{kind.__qualname__}"
    remedy = "store plain values (numbers, strings, lists, dicts, tensors), or leave it out"
    # Torch reads no integers of more than 255 bytes, no empty bytes, and few kinds of python
    # attributes of tensors.
    unreadable = True
    if kind is int and plain.bit_length() > 2000:
        found, remedy = f"{found} of more than 2,000 bits", "store it as a string"
    elif kind is bytes and not plain:
        found, remedy = "empty bytes", "store None"
    elif kind in (Tensor, nn.Parameter) and plain.__dict__:
        names = ", ".join(plain.__dict__)
        found, remedy = f"{found} with attributes ({names})", "store tensor.detach()"
    else:
        unreadable = False
    if isinstance(plain, Tensor) and (why := why_unreadable(plain)):
        raise TypeError(f"a checkpoint cannot hold {place or 'this'}: {why}")
    if is_sharded(plain):
        raise TypeError(
            f"a checkpoint file cannot hold {place or 'this'}, a DTensor, because each rank has "
            "only a part of it: save with CheckpointManager(..., sharded=True) on all ranks, or "
            "store tensor.full_tensor()"
        )
    if kind in _READABLE and not unreadable:
        return _whole(plain) if kind in (Tensor, nn.Parameter) else plain
    if kind in registered().values() and not _is_filled_later(plain):
        return plain
    raise TypeError(
        f"a checkpoint cannot hold {place or 'this'}, {found}: torch.load would refuse the file; "
        f"{remedy}"
    )


def _is_filled_later(value: Any) -> bool:
    """Whether its pickle adds items after the value is made, as for a deque. Torch reads none."""
    made = () if isinstance(value, Tensor) else value.__reduce_ex__(2)
    return isinstance(made, tuple) and any(made[3:5])


def registered() -> dict[str, Any]:
    """The classes that the program has passed to `add_safe_globals`, by name."""
    found = {}
    for each in torch.serialization.get_safe_globals():
        kind, name = each if isinstance(each, tuple) else (each, None)
        module, _, last = name.rpartition(".") if name else (kind.__module__, "", kind.__qualname__)
        found[f"{module} {last}"] = kind
    return found


_LAYOUTS = {
    torch.strided, torch.sparse_coo,
    torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc,
}  # fmt: skip


def why_unreadable(tensor: Tensor) -> str:
    """Why torch cannot read a tensor from a file; empty if it can."""
    if tensor.is_meta:
        return "it is on the meta device and has no numbers; load or initialize it, or leave it out"
    if tensor.is_quantized:
        return "torch.load refuses quantized tensors; store int_repr(), scales and zero points"
    if tensor.is_nested:
        return "torch.load refuses nested tensors; store their parts, tensor.unbind()"
    if tensor.layout not in _LAYOUTS:
        return f"torch.load cannot read the layout {tensor.layout}; store tensor.to_dense()"
    if not _storable(tensor.dtype):
        return f"torch.load cannot read {tensor.dtype}; store the bytes, tensor.view(torch.uint8)"
    return ""


@functools.cache
def _storable(dtype: torch.dtype) -> bool:
    """Whether torch can read a dtype that it writes. This is tried.

    Other errors, such as one that a signal handler raises in the middle, say nothing about the
    dtype. They are raised, and the next call tries again.
    """
    file = io.BytesIO()
    try:
        torch.save(torch.empty(1, dtype=dtype, device="cpu"), file)
        file.seek(0)
        return bool(torch.load(file, weights_only=True, mmap=False).dtype == dtype)
    except (AttributeError, KeyError, NotImplementedError, TypeError, UnpicklingError):
        return False


def _whole(tensor: Tensor) -> Tensor:
    """The tensor, or a copy if it is larger than its memory: readers would refuse such a file."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        return tensor
    logical = tensor.numel() * tensor.element_size()
    if logical <= tensor.untyped_storage().nbytes():
        return tensor
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.detach().contiguous(), tensor.requires_grad)
    return tensor.contiguous()


# ---------------------------------------------------------------- names of parameters


def renamed(state: Any, rename: Callable[[str], str]) -> Any:
    """A state dict with other names. It keeps the versions of its modules."""
    same = OrderedDict((rename(key), value) for key, value in state.items())
    if hasattr(state, "_metadata"):
        versions = OrderedDict((rename(key), value) for key, value in state._metadata.items())
        same._metadata = versions  # type: ignore[attr-defined]
    return same


def without_compile(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def bare_name(name: str) -> str:
    """A name without the parts that DDP, DataParallel and torch.compile add to it."""
    *above, last = without_compile(name).split(".")
    return ".".join([part for part in above if part != "module"] + [last])
