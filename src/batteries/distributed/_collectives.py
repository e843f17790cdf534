"""Collectives. One process without a group gets the result of a group of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from numbers import Number
from typing import Any, TypeVar, overload

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from batteries._foreign import brief
from batteries._numbers import as_whole
from batteries.distributed._agreement import Transfer, agree
from batteries.distributed._groups import Group, Ranks, ranks_of
from batteries.distributed._launch import in_group
from batteries.distributed._messages import (
    Failure,
    carrying_device,
    decode,
    device_of,
    encode,
    is_fsdp,
    is_sharded,
    refuse_sharded,
    transport_device,
)

T = TypeVar("T")
# Whether only some ranks execute this code. A collective here would pair with another one.
_apart: ContextVar[bool] = ContextVar("_apart", default=False)
# Whether other ranks do something else at the same time.
_one_rank: ContextVar[bool] = ContextVar("_one_rank", default=False)


def alone(what: str, ranks: Ranks | None = None) -> bool:
    """Whether the group has one rank; raises if a collective is not possible here."""
    ranks = ranks_of() if ranks is None else ranks
    if ranks.size == 1:
        return True
    if _apart.get():
        raise RuntimeError(
            f"{what} was called inside a block that the ranks do not execute together "
            "(rank_zero_first, or a shared rank_zero_only function): call it before or after"
        )
    if not in_group():
        raise RuntimeError(
            f"{what} was called with {ranks.size} processes started but no process group: "
            "call it inside `with batteries.distributed.setup():`"
        )
    return False


@contextmanager
def on_one_rank(*, collectives: bool) -> Iterator[None]:
    """A block in which calling a sharded model raises, because the call would wait for all ranks.

    Args:
        collectives: Whether collectives are allowed. Other ranks may call the same ones elsewhere.
    """
    if not in_group():
        yield
        return

    def refuse(module: nn.Module, args: Any) -> None:  # noqa: ARG001
        if is_fsdp(module):
            check_together(*module.parameters())

    one_rank, apart = _one_rank.set(True), _apart.set(_apart.get() or not collectives)
    hook = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        hook.remove()
        _apart.reset(apart)
        _one_rank.reset(one_rank)


def check_together(*tensors: Any) -> None:
    """Raise inside `on_one_rank` if some tensor has parts on other ranks."""
    if _one_rank.get() and any(is_sharded(t) and t.device_mesh.size() > 1 for t in tensors):
        raise RuntimeError(
            "a model that fully_shard has sharded was called on some ranks alone (inside "
            "rank_zero_first or a rank_zero_only function), but it needs its parts on the other "
            "ranks. Call it on all ranks, each with its part of the samples, and combine the "
            "results with Predictions or all_reduce_meters"
        )


def barrier(group: Group = None) -> None:
    """Wait until every rank has called `barrier`.

    >>> barrier()

    Args:
        group: The ranks that take part: a `ProcessGroup`, a `DeviceMesh` of one dimension, or
            `(mesh, "dp")`. Ranks are numbered as in the group. Default: all ranks.

    Raises:
        TypeError: The group is something else.
        ValueError: The mesh has no such dimension, or several, or this rank is not in the group.
        RuntimeError: The ranks are not doing the same, or some are missing; the message names them.
            Or several processes were started, and there is no process group. Or `barrier` is called
            inside `rank_zero_first` or a shared `rank_zero_only` function. The other collectives
            raise the same errors.
    """
    ranks = ranks_of(group)
    if not alone("barrier", ranks):
        agree("barrier", encode(None)[0], ranks=ranks)


def all_gather(data: T, *, check: bool = True, group: Group = None) -> list[T]:
    """Collect one value of each rank, in the order of the ranks, on every rank.

    >>> all_gather({"name": "a"})
    [{'name': 'a'}]

    Tensors may differ in shape and dtype, and arrive on the device of this rank's own tensor.
    Other data is pickled, and tensors inside it arrive on the CPU. Unpickling runs code, so the
    processes must trust each other.

    With several ranks, the tensors are copies without a gradient. A contrastive loss needs the
    gradient of this rank's own tensor, so put that tensor back: `gathered[rank()] = own`. If each
    rank computes the whole loss, multiply the loss by `world_size()`, because DDP divides gradients
    by this number. The gradient then equals that of a run on one process.

    Args:
        check: False lets the ranks call from different places in the program.
        group: As in `barrier`.

    Raises:
        Exception: The data of a rank cannot be pickled. All ranks raise that rank's error.
        RuntimeError: The ranks are not doing the same, or some are missing; the message names them.
    """
    ranks = ranks_of(group)
    return [data] if alone("all_gather", ranks) else _all_gather(data, "all_gather", check, ranks)


def _all_gather(data: Any, operation: str, check: bool, ranks: Ranks) -> list[Any]:
    header, payload = encode(data)
    told = agree(operation, header, check, ranks, payload=payload)
    metas = [meta for meta, _ in told]
    payloads = [part for _, part in told if part is not None]
    if len(payloads) < ranks.size:
        sizes = [meta.size for meta in metas]
        carrier = carrying_device(metas, ranks.group)
        payloads = [torch.empty(size, dtype=torch.uint8, device=carrier) for size in sizes]
        _carry(payload.to(carrier), payloads, Transfer(operation, check, ranks))
    device = device_of(data)
    return [decode(meta, part, device) for meta, part in zip(metas, payloads, strict=True)]


def _carry(own: Tensor, payloads: list[Tensor], transfer: Transfer) -> None:
    """Fill `payloads`, which may have different sizes, with the bytes of each rank."""
    ranks = transfer.ranks
    if len({len(part) for part in payloads}) == 1:
        with transfer.sending():
            work = dist.all_gather(payloads, own, group=ranks.group, async_op=True)
            transfer.wait(work, own.device, own, *payloads)
    else:
        payloads[ranks.rank] = own
        for arrive in [transfer.send(part, src) for src, part in enumerate(payloads)]:
            arrive()


def together(function: Callable[[], T], group: Group = None) -> T:
    """Call a function on every rank. If it raises on one rank, all ranks raise its error.

    >>> together(lambda: 3)
    3

    Args:
        group: As in `barrier`.

    Returns:
        This rank's own result.
    """
    ranks = ranks_of(group)
    if alone("together", ranks):
        return function()
    try:
        result = function()
    except BaseException as error:
        with suppress(BaseException):  # this raises the error here, too
            _all_gather(Failure.of(error), "together", True, ranks)
        raise
    _all_gather(None, "together", True, ranks)
    return result


def broadcast(data: T, src: int = 0, *, check: bool = True, group: Group = None) -> T:
    """Give every rank the value of rank `src`. The values of the other ranks are ignored.

    >>> broadcast("runs/003")
    'runs/003'

    A tensor arrives on the device of the tensor that the receiving rank passed, or on the CPU if it
    passed none. Other data is pickled, as in `all_gather`.

    Args:
        src: The number of the sending rank in the group.
        check: False lets the ranks call from different places in the program.
        group: As in `barrier`.

    Raises:
        ValueError: `src` is not a rank of the group.
        TypeError: `src` is not a whole number.
        Exception: The data of rank `src` cannot be pickled. All ranks raise its error.
        RuntimeError: The ranks are not doing the same, or some are missing; the message names them.
    """
    ranks, src = ranks_of(group), as_whole(src, "src")
    if not 0 <= src < ranks.size:
        raise ValueError(f"src is {src}; expected a rank of the group, 0 to {ranks.size - 1}")
    if alone("broadcast", ranks):
        return data
    sending = ranks.rank == src
    header, payload = encode(data if sending else None)
    operation = f"broadcast from rank {src}"
    [(meta, small)] = agree(operation, header, check, ranks, src, payload if sending else None)
    if small is None:
        carrier = carrying_device([meta], ranks.group)
        if not sending:
            payload = torch.empty(meta.size, dtype=torch.uint8, device=carrier)
        payload = payload.to(carrier)
        Transfer(operation, check, ranks).send(payload, src)()
    if sending and not meta.failed:
        return data
    received: T = decode(meta, payload if small is None else small, device_of(data))
    return received


_REDUCTIONS = {"sum": "SUM", "mean": "SUM", "min": "MIN", "max": "MAX", "product": "PRODUCT"}


@overload
def all_reduce(
    value: Tensor, op: str = "sum", *, check: bool = True, group: Group = None
) -> Tensor: ...
@overload
def all_reduce(
    value: float, op: str = "sum", *, check: bool = True, group: Group = None
) -> float: ...
def all_reduce(
    value: Tensor | float, op: str = "sum", *, check: bool = True, group: Group = None
) -> Tensor | float:
    """Combine the numbers or tensors of all ranks into one, on every rank.

    >>> all_reduce(3, "max")
    3
    >>> all_reduce(torch.tensor([True, False]))
    tensor([1, 0])

    Numbers may be ints on some ranks and floats on others. Tensors need the same shape and dtype
    on all ranks, and are not changed. As in `torch.sum`, the result of booleans and integers is
    int64. Floats keep their dtype; 16-bit floats are added up in float32. The mean of integers is
    float64. The result of every operation is NaN if a rank has NaN. The result has no gradient.

    Args:
        op: "sum", "mean", "min", "max" or "product".
        check: False lets the ranks call from different places in the program. For tensors it also
            skips the exchange in which the ranks agree, so all ranks must pass the same `check`.
        group: As in `barrier`.

    Raises:
        TypeError: Another value than a number or a tensor, or a DTensor.
        ValueError: An unknown operation.
        RuntimeError: The ranks are not doing the same, or some are missing; the message names them.
    """
    if op not in _REDUCTIONS:
        raise ValueError(f"op is {op!r}; all_reduce knows {', '.join(_REDUCTIONS)}")
    ranks = ranks_of(group)
    if not isinstance(value, Tensor):
        one = isinstance(value, np.generic | np.ndarray) and value.size == 1
        number: Any = value.item() if one else value  # type: ignore[attr-defined]
        if not isinstance(number, Number):
            raise TypeError(f"all_reduce got {brief(value)}; expected a number or a tensor")
        operation = f"all_reduce({op}) of a number"
        single = alone("all_reduce", ranks)
        values: list[Any] = [number] if single else _all_gather(number, operation, check, ranks)
        return _reduced(values, op)
    refuse_sharded(value, "the value of all_reduce")
    reduced = value.detach().clone(memory_format=torch.contiguous_format)
    small = reduced.is_floating_point() and reduced.itemsize < 4
    if small:
        reduced = reduced.float()
    elif not (reduced.is_floating_point() or reduced.is_complex()):
        reduced = reduced.double() if op == "mean" else reduced.long()
    if not alone("all_reduce", ranks):
        form = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        operation = f"all_reduce({op}) of {form}"
        if check:
            agree(operation, encode(None)[0], ranks=ranks)
        reduced = _all_reduced(reduced, op, Transfer(operation, check, ranks)).to(value.device)
    reduced = reduced / ranks.size if op == "mean" else reduced
    return reduced.to(value.dtype) if small else reduced


def _all_reduced(own: Tensor, op: str, transfer: Transfer) -> Tensor:
    group = transfer.ranks.group
    if not (own.is_cuda and "nccl" in dist.get_backend_config(group)):
        own = own.to(transport_device(group))  # gloo sends from the CPU, where the wait has a bound
    nan = own.isnan() if op in ("min", "max") else None
    counts = None if nan is None else nan.to(torch.uint8)
    kind = getattr(dist.ReduceOp, _REDUCTIONS[op])
    with transfer.sending():
        work = dist.all_reduce(own, op=kind, group=group, async_op=True)
        transfer.wait(work, own.device, own)
        if counts is not None:
            work = dist.all_reduce(counts, op=dist.ReduceOp.MAX, group=group, async_op=True)
            transfer.wait(work, counts.device, counts)
    if counts is not None:  # whether NaN is larger than a number would depend on the rank
        own.masked_fill_(counts.bool(), torch.nan if own.is_floating_point() else 0)
    return own


def _reduced(numbers: list[float], op: str) -> float:
    if op in ("min", "max"):
        return next((x for x in numbers if x != x), min(numbers) if op == "min" else max(numbers))
    if op == "product":
        return math.prod(numbers)
    return sum(numbers) / len(numbers) if op == "mean" else sum(numbers)
