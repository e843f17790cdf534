"""A value as a message between ranks: a header, and a payload of bytes."""

from __future__ import annotations

import io
import pickle
import sys
import traceback
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from batteries.distributed._launch import rank


class Failure(NamedTuple):
    """An error that is sent to other ranks."""

    rank: int
    pickled: bytes | None  # None: the error cannot be pickled
    text: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        text = "".join(traceback.format_exception(error))
        try:
            pickled = pickle.dumps(error)
            # An exception with its own `__init__` may fail to load here, or load as another one.
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


class Header(NamedTuple):
    """The kind and size of a payload."""

    size: int  # bytes of payload
    failed: bool
    dtype: str | None  # "float32"; None: a pickle
    shape: list[int]
    on: str  # "cuda" or "cpu"


def encode(data: object) -> tuple[Header, Tensor]:
    """The header and the payload of a value, on the value's device."""
    dtype, shape, on = None, [], "cpu"
    failure = data if isinstance(data, Failure) else None
    try:
        if type(data) is Tensor and data.layout == torch.strided and not data.is_quantized:
            plain = data.detach().resolve_conj().resolve_neg().contiguous()
            payload = plain.reshape(-1).view(torch.uint8)
            payload = payload if payload.is_cuda else payload.to("cpu")
            dtype, shape = str(data.dtype).removeprefix("torch."), list(data.shape)
            on = payload.device.type
        else:
            payload = as_tensor(pickled(failure or data))
    except Exception as error:
        failure = Failure.of(error)
        payload = as_tensor(pickle.dumps(failure))
    return Header(payload.numel(), failure is not None, dtype, shape, on), payload


class _Pickler(pickle.Pickler):
    """Copies tensors to the CPU, and only the part of a storage that a view shows.

    Torch itself would unpickle a tensor of GPU 1 on the receiver's GPU 1, and send whole storages.
    """

    def reducer_override(self, value: Any) -> Any:
        refuse_sharded(value, "the value")
        if type(value) is not Tensor or value.layout != torch.strided:
            return NotImplemented
        if value.dtype not in torch.storage._dtype_to_storage_type_map():
            # Torch cannot read its own pickles of these dtypes, such as uint32 and float8.
            plain = value.detach().cpu().contiguous()
            return _typed, (plain.reshape(-1).view(torch.uint8), value.dtype, value.shape)
        small = value.untyped_storage().nbytes() > value.numel() * value.element_size()
        if value.device.type == "cpu" and not small:
            return NotImplemented
        return value.detach().cpu().clone().__reduce_ex__(2)  # type: ignore[no-untyped-call]


def _typed(data: Tensor, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    return data.view(dtype).reshape(shape)


def is_sharded(value: object) -> bool:
    """Whether a tensor is a DTensor, of which each rank has a part."""
    tensors = sys.modules.get("torch.distributed.tensor")  # importing it takes long
    return tensors is not None and isinstance(value, tensors.DTensor)


def is_fsdp(module: object) -> bool:
    """Whether `fully_shard` was applied to a module."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def refuse_sharded(value: object, name: str) -> None:
    """Raise for a DTensor: the receiver would take the sender's part for its own."""
    if is_sharded(value):
        raise TypeError(
            f"{name} is or has a DTensor, of which each rank has its own part: pass "
            "tensor.full_tensor(), which all ranks of its mesh call, or tensor.to_local()"
        )


def pickled(data: object) -> bytes:
    """A pickle whose tensors are on the CPU, without the rest of their storages."""
    file = io.BytesIO()
    _Pickler(file).dump(data)
    return file.getvalue()


def as_tensor(data: bytes) -> Tensor:
    """A copy of the bytes as a tensor."""
    return torch.frombuffer(bytearray(data or b" "), dtype=torch.uint8)[: len(data)]


def transport_device(group: Any = None) -> torch.device:
    """The device whose tensors the group can send: the CPU, unless nccl is its only backend."""
    if "gloo" in dist.get_backend_config(group) or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def carrying_device(metas: list[Header], group: Any = None) -> torch.device:
    """The device from which payloads are sent: the GPU if all are there and the group has nccl."""
    if all(meta.on == "cuda" for meta in metas) and "nccl" in dist.get_backend_config(group):
        return torch.device("cuda", torch.cuda.current_device())
    return transport_device(group)


def decode(meta: Header, payload: Tensor, device: torch.device) -> Any:
    """The value of a message; raises it if it is an error."""
    if meta.dtype is not None:
        return payload.view(getattr(torch, meta.dtype)).reshape(meta.shape).to(device)
    data = pickle.loads(payload.cpu().numpy().tobytes())
    if meta.failed:
        data.throw()
    return data


def device_of(data: object) -> torch.device:
    """The device of a tensor; the CPU for other values."""
    return data.device if isinstance(data, Tensor) else torch.device("cpu")
