"""Checksums of a step's batch, parameters, buffers and gradients."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from batteries import distributed
from batteries._changes import PLAIN
from batteries._configurations import parts_of, plain_value
from batteries._files import PathLike
from batteries._modules import digest, reshard, unwrap
from batteries._numbers import as_whole
from batteries._rundir.checksums import add_checksums

_NUMBERS = Tensor | np.ndarray
_PLAIN = (*PLAIN, torch.dtype, torch.device, range, slice)


def log_checksums(run: PathLike, step: int, model: nn.Module, batch: Any = None) -> None:
    """Write the checksums of a step's batch, parameters, buffers and gradients.

    >>> model, x = nn.Linear(2, 1), torch.ones(4, 2)
    >>> model(x).sum().backward()
    >>> log_checksums("runs/a", 1, model, batch=x)  # before the optimizer's step
    >>> print(scoreboard.first_difference("runs/a", "runs/a"))
    the checksums are equal at all steps (1)

    `batteries compare` and `scoreboard.first_difference` read the checksums and name the first step
    and tensor in which two runs differ. Every tensor is copied to the host, which takes time, so
    call `log_checksums` only every few steps.

    All ranks call it, and rank 0 writes `checksums.jsonl` in the run's directory. A value that
    differs between ranks, such as the batch, has a checksum for each rank.

    Args:
        run: The run's directory.
        step: The number of the step, under which `first_difference` compares two runs.
        model: The model, wrapped or not.
        batch: Tensors, arrays and plain values, in lists, dicts and dataclasses.

    Raises:
        TypeError: The batch has other objects, or the step is not a whole number.
    """
    reshard(model := unwrap(model))
    step = as_whole(step, "step")
    own = dict(_sums(model, batch))
    everybody = distributed.all_gather(own)
    sums: dict[str, str] = {}
    for name in dict.fromkeys(name for each in everybody for name in each):
        found = [each.get(name, "") for each in everybody]
        if len(set(found)) == 1:
            sums[name] = found[0]
        else:
            sums |= {f"{name} on rank {rank}": value for rank, value in enumerate(found)}
    distributed.rank_zero_only(add_checksums)(run, step, sums)


def _sums(model: nn.Module, batch: Any) -> Iterator[tuple[str, str]]:
    """The sums in the order in which a step computes: the first difference causes the others."""
    yield from _sums_in(batch, "batch")
    for name, parameter in model.named_parameters():
        yield f"parameter {name}", _sum(parameter)
    for name, buffer in model.named_buffers():
        yield f"buffer {name}", _sum(buffer)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            yield f"gradient of {name}", _sum(parameter.grad)


def _sums_in(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = value.tolist()
    parts = None if isinstance(value, Tensor) else parts_of(value)
    if isinstance(value, set | frozenset):
        yield place, _sum(str(sorted(map(repr, value))))
    elif isinstance(parts, Mapping):
        for name, each in parts.items():
            yield from _sums_in(each, f"{place}[{name!r}]")
    elif isinstance(value, list | tuple | deque) and not all(isinstance(v, str) for v in value):
        for index, each in enumerate(value):
            yield from _sums_in(each, f"{place}[{index}]")
    elif isinstance(value, _NUMBERS | list | tuple) or isinstance(plain_value(value), _PLAIN):
        if value is not None:
            yield place, _sum(value)
    else:  # the object's text may leave out numbers, or have an address
        raise TypeError(
            f"{place} is a {type(value).__name__}; expected tensors, arrays and plain values, in "
            "lists, dicts and dataclasses: pass its tensors"
        )


def _sum(value: Any) -> str:
    if isinstance(value, Tensor):
        return digest(value)[:16]
    array = isinstance(value, np.ndarray)
    data = (
        f"{value.shape} {value.dtype};".encode() + value.tobytes()
        if array
        else repr(value).encode()
    )
    return hashlib.blake2b(data, digest_size=8).hexdigest()
