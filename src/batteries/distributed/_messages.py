"""How a value travels between ranks: a header that says what it is, and bytes."""

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
    """An error on its way to other ranks."""

    rank: int
    pickled: bytes | None  # None: this error cannot travel as itself
    text: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
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


class Header(NamedTuple):
    """What a payload of bytes is."""

    size: int  # bytes of payload
    failed: bool
    dtype: str | None  # "float32"; None: a pickle
    shape: list[int]
    on: str  # "cuda" or "cpu"


def encode(data: object) -> tuple[Header, Tensor]:
    """The header and the payload of a value, which stays where it is."""
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
    """Takes tensors to the CPU, and of a view the view alone.

    Torch would unpickle rank 1's on the receiver's second GPU, and send all that a view is part of.
    """

    def reducer_override(self, value: Any) -> Any:
        refuse_sharded(value, "it")
        if type(value) is not Tensor or value.layout != torch.strided:
            return NotImplemented
        small = value.untyped_storage().nbytes() > value.numel() * value.element_size()
        if value.device.type == "cpu" and not small:
            return NotImplemented
        return value.detach().cpu().clone().__reduce_ex__(2)  # type: ignore[no-untyped-call]


def is_sharded(value: object) -> bool:
    """Whether a tensor is a DTensor, of which each rank has its own part."""
    tensors = sys.modules.get("torch.distributed.tensor")  # takes long to import
    return tensors is not None and isinstance(value, tensors.DTensor)


def is_fsdp(module: object) -> bool:
    """Whether `fully_shard` has divided the parameters of a module, or of one in it."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def refuse_sharded(value: object, name: str) -> None:
    """Raise where a whole tensor is needed, and a DTensor was passed.

    On another rank its local part would be taken for that rank's.
    """
    if is_sharded(value):
        raise TypeError(
            f"{name} is or has a DTensor, of which each rank has its own part: pass "
            "tensor.full_tensor(), which all ranks of its mesh call, or tensor.to_local()"
        )


def pickled(data: object) -> bytes:
    """A pickle whose tensors are on the CPU, and no larger than they look."""
    file = io.BytesIO()
    _Pickler(file).dump(data)
    return file.getvalue()


def as_tensor(data: bytes) -> Tensor:
    """Bytes, in memory of their own."""
    return torch.frombuffer(bytearray(data or b" "), dtype=torch.uint8)[: len(data)]


def transport_device(group: Any = None) -> torch.device:
    """The device whose tensors the group can carry: the CPU, unless the group is nccl alone."""
    if "gloo" in dist.get_backend_config(group) or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def carrying_device(metas: list[Header], group: Any = None) -> torch.device:
    """The device that carries the payloads: the GPU when they all lie there and nccl is at hand."""
    if all(meta.on == "cuda" for meta in metas) and "nccl" in dist.get_backend_config(group):
        return torch.device("cuda", torch.cuda.current_device())
    return transport_device(group)


def decode(meta: Header, payload: Tensor, device: torch.device) -> Any:
    """The value that a header and a payload are; one that is an error is raised."""
    if meta.dtype is not None:
        return payload.view(getattr(torch, meta.dtype)).reshape(meta.shape).to(device)
    data = pickle.loads(payload.cpu().numpy().tobytes())
    if meta.failed:
        data.throw()
    return data


def device_of(data: object) -> torch.device:
    """Where a tensor lies; the CPU for other values."""
    return data.device if isinstance(data, Tensor) else torch.device("cpu")
