"""Ranks, process groups and collectives; with one process and no group, all of it is right too."""

from __future__ import annotations

import functools
import io
import json
import math
import os
import pickle
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar, overload

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


class _Launch(NamedTuple):
    """What the launcher said about this process."""

    rank: int
    world_size: int
    local_rank: int | None  # None, 0: the launcher does not say
    local_world_size: int
    init_method: str


def _launch() -> _Launch | None:
    """Read what torchrun, torch.distributed.launch or Slurm put in the environment."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return _Launch(
            rank=int(env["RANK"]),
            world_size=int(env["WORLD_SIZE"]),
            local_rank=int(env["LOCAL_RANK"]) if "LOCAL_RANK" in env else None,
            local_world_size=int(env.get("LOCAL_WORLD_SIZE", 0)),
            init_method="env://",
        )
    # A step's variable, not a job's: in a batch script outside srun there is one process only.
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        # "node[07-09,12],other3" begins with node07
        host = re.sub(r"\[(\w+)[^]]*\]", r"\1", env["SLURM_STEP_NODELIST"]).split(",")[0]
        host = env.get("MASTER_ADDR", host)
        # The same on every rank, different for jobs that share a host.
        port = env.get("MASTER_PORT", 20_000 + int(env["SLURM_JOB_ID"]) % 10_000)
        return _Launch(
            rank=int(env["SLURM_PROCID"]),
            world_size=int(env["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(env["SLURM_LOCALID"]),
            local_world_size=0,
            init_method=f"tcp://{host}:{port}",
        )
    return None


@contextmanager
def setup(backend: str | None = None, timeout: timedelta | None = None) -> Iterator[torch.device]:
    """Join the process group that the launcher made, and leave it at the end, come what may.

    >>> with setup() as device:
    ...     weight = torch.zeros(1, device=device)

    Started by torchrun, `python -m torch.distributed.launch` or srun, each process gets its own
    GPU, or the CPU on a machine without GPUs. Started by hand there is no group, and the device is
    the first GPU or the CPU.

    Args:
        backend: Default: "gloo" for the CPU, with "nccl" for the GPUs where there are some. "gloo"
            alone keeps to the CPU.
        timeout: How long a collective waits for the other ranks; default: torch's own.

    Raises:
        ValueError: More processes were started on this host than it has GPUs.
    """
    launch = _launch()
    gpus = torch.cuda.device_count()
    if launch is None:
        yield torch.device("cuda", 0) if gpus else torch.device("cpu")
        return
    device = torch.device("cpu")
    if (gpus and backend != "gloo") or backend == "nccl":
        device = torch.device("cuda", _gpu_index(local_rank(), launch.local_world_size, gpus))
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend or ("cpu:gloo,cuda:nccl" if gpus else "gloo"),
        init_method=launch.init_method,
        rank=launch.rank,
        world_size=launch.world_size,
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _gpu_index(local_rank: int, local_world_size: int, gpus: int) -> int:
    """The GPU of a process among those it can see.

    >>> _gpu_index(local_rank=1, local_world_size=8, gpus=8)
    1
    """
    if local_world_size == 0 and gpus == 1:  # srun --gpus-per-task=1 shows each its own
        return 0
    wanted = local_world_size or local_rank + 1
    if wanted > gpus:
        remedy = f"start at most {gpus} (torchrun --nproc-per-node={gpus})" if gpus else "use gloo"
        raise ValueError(
            f"{wanted} processes were started on this host to train on its GPUs, but PyTorch can "
            f"use {gpus} here: {remedy}"
        )
    return local_rank


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process among all, from 0; what the launcher said where there is no group.

    >>> rank()
    0
    """
    if _in_group():
        return dist.get_rank()
    launch = _launch()
    return launch.rank if launch else 0


def world_size() -> int:
    """How many processes there are; what the launcher said where there is no group.

    >>> world_size()
    1
    """
    if _in_group():
        return dist.get_world_size()
    launch = _launch()
    return launch.world_size if launch else 1


def local_rank() -> int:
    """The number of this process among those of its host, from 0.

    >>> local_rank()
    0

    Raises:
        RuntimeError: There are several processes, and no launcher that said it.
    """
    launch = _launch()
    if launch and launch.local_rank is not None:
        return launch.local_rank
    if world_size() > 1:
        raise RuntimeError(
            "the local rank is not known: LOCAL_RANK is not in the environment; start the program "
            "with torchrun, or set it where you start the processes"
        )
    return 0


def is_main() -> bool:
    """Whether this is the process that prints, logs and writes: global rank 0.

    >>> is_main()
    True
    """
    return rank() == 0


# Whether this code is where the ranks are not together: a collective there would pair with another.
_apart: ContextVar[bool] = ContextVar("_apart", default=False)


def _alone(what: str) -> bool:
    """Whether a collective has nobody to talk to; a group that was forgotten is an error."""
    if world_size() == 1:
        return True
    if _apart.get():
        raise RuntimeError(
            f"{what} was called inside a block that the ranks do not go through together "
            "(rank_zero_first, or a shared rank_zero_only function): call it before or after"
        )
    if not _in_group():
        raise RuntimeError(
            f"{what} was called with {world_size()} processes started but no process group: "
            "call it inside `with batteries.distributed.setup():`"
        )
    return False


def _transport() -> torch.device:
    """The device whose tensors the group can carry: the CPU, unless the group is nccl alone."""
    if "gloo" in dist.get_backend_config() or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def barrier() -> None:
    """Wait until every rank is here.

    >>> barrier()
    """
    if not _alone("barrier"):
        token = torch.zeros(1, device=_transport())
        dist.all_reduce(token)
        token.item()  # nccl only queues the work: wait for it


def all_gather(data: T) -> list[T]:
    """Collect one value of each rank, in the order of the ranks, on every rank.

    >>> all_gather({"name": "a"})
    [{'name': 'a'}]

    Tensors may differ in shape and dtype, and arrive on the device of this rank's own tensor.
    Other data is pickled; tensors inside it arrive on the CPU. Use it among processes that trust
    each other: unpickling runs code.

    Raises:
        Exception: The error of a rank whose data cannot be pickled, on every rank.
    """
    if _alone("all_gather"):
        return [data]
    transport = _transport()
    header, payload = _encode(data, transport)
    headers = [torch.empty_like(header) for _ in range(world_size())]
    dist.all_gather(headers, header)
    metas = [_read_header(header) for header in headers]
    sizes = [meta.size for meta in metas]
    carrier = _carrier(metas, transport)
    payloads = [torch.empty(size, dtype=torch.uint8, device=carrier) for size in sizes]
    if len(set(sizes)) == 1:
        dist.all_gather(payloads, payload.to(carrier))
    else:
        payloads[rank()] = payload.to(carrier)
        for source, part in enumerate(payloads):
            dist.broadcast(part, src=source)
    device = _device_of(data)
    return [_decode(meta, part, device) for meta, part in zip(metas, payloads, strict=True)]


def broadcast(data: T, src: int = 0) -> T:
    """Give every rank the value of rank `src`; what the others pass is not looked at.

    >>> broadcast("runs/003")
    'runs/003'

    A tensor arrives on the device of the tensor that the receiving rank passed, else on the CPU.

    Raises:
        Exception: The error of rank `src` if its data cannot be pickled, on every rank.
    """
    if _alone("broadcast"):
        return data
    transport = _transport()
    sending = rank() == src
    header, payload = _encode(data if sending else None, transport)
    dist.broadcast(header, src=src)
    meta = _read_header(header)
    carrier = _carrier([meta], transport)
    if not sending:
        payload = torch.empty(meta.size, dtype=torch.uint8, device=carrier)
    payload = payload.to(carrier)
    dist.broadcast(payload, src=src)
    if sending and not meta.failed:
        return data
    received: T = _decode(meta, payload, _device_of(data))
    return received


_REDUCTIONS = {"sum": "SUM", "mean": "SUM", "min": "MIN", "max": "MAX", "product": "PRODUCT"}


@overload
def all_reduce(value: Tensor, op: str = "sum") -> Tensor: ...
@overload
def all_reduce(value: float, op: str = "sum") -> float: ...
def all_reduce(value: Tensor | float, op: str = "sum") -> Tensor | float:
    """Reduce one number or tensor of each rank to one, on every rank.

    >>> all_reduce(3, "max")
    3
    >>> all_reduce(torch.tensor([True, False]))
    tensor([1, 0])

    Numbers may be ints on some ranks and floats on others. The tensors have equal shapes and
    dtypes; what was passed stays as it is. As in torch, booleans count as integers, the mean of
    integers is float64, and NaN wins over any number.

    Args:
        op: "sum", "mean", "min", "max" or "product".

    Raises:
        ValueError: An unknown operation.
    """
    if op not in _REDUCTIONS:
        raise ValueError(f"all_reduce knows {', '.join(_REDUCTIONS)}, not {op!r}")
    if not isinstance(value, Tensor):
        return _reduced([value] if _alone("all_reduce") else all_gather(value), op)
    reduced = value.detach().clone(memory_format=torch.contiguous_format)
    if reduced.dtype == torch.bool:
        reduced = reduced.long()
    if op == "mean" and not (reduced.is_floating_point() or reduced.is_complex()):
        reduced = reduced.double()
    if not _alone("all_reduce"):
        transport = _transport()
        if transport.type == "cuda":  # nccl alone does not carry what lies on the CPU
            reduced = reduced.to(transport)
        nan = reduced.isnan() if op in ("min", "max") else None
        dist.all_reduce(reduced, op=getattr(dist.ReduceOp, _REDUCTIONS[op]))
        if nan is not None:  # which of NaN and a number is larger depends on the rank
            counts = nan.to(torch.uint8)
            dist.all_reduce(counts, op=dist.ReduceOp.MAX)
            reduced[counts.bool()] = torch.nan if reduced.is_floating_point() else 0
        reduced = reduced.to(value.device)
    return reduced / world_size() if op == "mean" else reduced


def _reduced(values: list[float], op: str) -> float:
    numbers = [value.item() if isinstance(value, np.generic) else value for value in values]
    if op in ("min", "max"):
        return next((x for x in numbers if x != x), min(numbers) if op == "min" else max(numbers))
    if op == "product":
        return math.prod(numbers)
    return sum(numbers) / len(numbers) if op == "mean" else sum(numbers)


@overload
def rank_zero_only(function: Callable[P, T]) -> Callable[P, T | None]: ...
@overload
def rank_zero_only(*, share: Literal[True]) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
def rank_zero_only(function: Callable[P, T] | None = None, *, share: bool = False) -> Any:
    """Run a function on rank 0 alone.

    >>> @rank_zero_only
    ... def announce():
    ...     print("once")
    >>> announce()
    once

    The other ranks get None and do not wait. With `@rank_zero_only(share=True)` they wait and get
    the result, or raise the error that rank 0 raised; all ranks must then call it.
    """
    if function is None:
        return functools.partial(_rank_zero_only, share=share)
    return _rank_zero_only(function, share)


def _rank_zero_only(function: Callable[P, T], share: bool) -> Callable[P, T | None]:
    @functools.wraps(function)
    def on_rank_zero(*args: P.args, **kwargs: P.kwargs) -> T | None:
        if not share:
            return function(*args, **kwargs) if is_main() else None
        if _alone("a shared rank_zero_only function"):
            return function(*args, **kwargs)
        if not is_main():
            return broadcast(None)
        with _sharing_errors():
            result = function(*args, **kwargs)
        return broadcast(result)

    return on_rank_zero


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Let rank 0 go through a block first, then all the others together.

    >>> with rank_zero_first():
    ...     data = "downloaded by rank 0, read from the disk by the others"

    When rank 0 raises inside the block, the others raise the same error instead of entering it.
    """
    if _alone("rank_zero_first"):
        yield
    elif is_main():
        with _sharing_errors():
            yield
        broadcast(None)
    else:
        broadcast(None)
        with _being_apart():
            yield


@contextmanager
def _being_apart() -> Iterator[None]:
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


@contextmanager
def _sharing_errors() -> Iterator[None]:
    """Send the error that ends a block to the ranks that wait in `broadcast`."""
    try:
        with _being_apart():
            yield
    except BaseException as error:
        with suppress(BaseException):  # `broadcast` raises what it has told; so do we, below
            broadcast(_Failure.of(error))
        raise


class _Failure(NamedTuple):
    """An error on its way to other ranks."""

    rank: int
    pickled: bytes | None  # None: this error cannot travel as itself
    text: str

    @classmethod
    def of(cls, error: BaseException) -> _Failure:
        text = "".join(traceback.format_exception(error))
        try:
            pickled = pickle.dumps(error)
            # An exception with arguments of its own may fail here, or come back as another.
            same = str(pickle.loads(pickled)) == str(error)
        except Exception:
            same = False
        return cls(rank(), pickled if same else None, text)

    def throw(self) -> None:
        told = RuntimeError(f"raised on rank {self.rank}:\n{self.text}")
        if self.pickled is None:
            raise told
        try:
            error: BaseException = pickle.loads(self.pickled)
        except Exception:
            raise told from None
        raise error from told


# A value travels as a header of fixed length, which says what follows, and a payload of bytes.
_HEADER_BYTES = 1024


class _Meta(NamedTuple):
    size: int  # bytes of payload
    failed: bool
    dtype: str | None  # "float32"; None: a pickle
    shape: list[int]
    on: str  # "cuda" or "cpu"


def _encode(data: object, transport: torch.device) -> tuple[Tensor, Tensor]:
    """The header, on the device that carries it, and the payload, where the data is."""
    dtype, shape, on = None, [], "cpu"
    failure = data if isinstance(data, _Failure) else None
    try:
        if type(data) is Tensor and data.layout == torch.strided and not data.is_quantized:
            plain = data.detach().resolve_conj().resolve_neg().contiguous()
            payload = plain.reshape(-1).view(torch.uint8)
            payload = payload if payload.is_cuda else payload.to("cpu")
            dtype, shape = str(data.dtype).removeprefix("torch."), list(data.shape)
            on = payload.device.type
        else:
            payload = _as_tensor(_pickle(failure or data))
    except Exception as error:
        failure = _Failure.of(error)
        payload = _as_tensor(pickle.dumps(failure))
    meta = _Meta(payload.numel(), failure is not None, dtype, shape, on)
    header = json.dumps(meta).encode().ljust(_HEADER_BYTES)
    assert len(header) == _HEADER_BYTES, "64 dimensions, the most torch has, fit"
    return _as_tensor(header).to(transport), payload


class _Pickler(pickle.Pickler):
    """Takes tensors to the CPU, and of a view the view alone.

    Torch would unpickle rank 1's on the receiver's second GPU, and send all that a view is part of.
    """

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not Tensor or value.layout != torch.strided:
            return NotImplemented
        small = value.untyped_storage().nbytes() > value.numel() * value.element_size()
        if value.device.type == "cpu" and not small:
            return NotImplemented
        return value.detach().cpu().clone().__reduce_ex__(2)  # type: ignore[no-untyped-call]


def _pickle(data: object) -> bytes:
    file = io.BytesIO()
    _Pickler(file).dump(data)
    return file.getvalue()


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _carrier(metas: list[_Meta], transport: torch.device) -> torch.device:
    """The device that carries the payloads: the GPU when they all lie there and nccl is at hand."""
    on_gpus = all(meta.on == "cuda" for meta in metas) and "nccl" in dist.get_backend_config()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpus else transport


def _read_header(header: Tensor) -> _Meta:
    return _Meta(*json.loads(header.cpu().numpy().tobytes()))


def _decode(meta: _Meta, payload: Tensor, device: torch.device) -> Any:
    if meta.dtype is not None:
        return payload.view(getattr(torch, meta.dtype)).reshape(meta.shape).to(device)
    data = pickle.loads(payload.cpu().numpy().tobytes())
    if meta.failed:
        data.throw()
    return data


def _device_of(data: object) -> torch.device:
    return data.device if isinstance(data, Tensor) else torch.device("cpu")
