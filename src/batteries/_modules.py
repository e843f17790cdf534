"""Modules and their wrappers: DistributedDataParallel, DataParallel, torch.compile."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from batteries import distributed
from batteries.distributed._messages import is_fsdp, is_sharded, refuse_sharded


def unwrap(model: nn.Module, *, keep_compile: bool = False) -> nn.Module:
    """Return the module that the user wrote, from under every wrapper.

    >>> model = nn.Linear(2, 1)
    >>> unwrap(nn.DataParallel(nn.DataParallel(model))) is model
    True

    Evaluate the unwrapped module: if one rank has fewer batches, the others do not hang. A model of
    FSDP2 has no wrapper, and every rank has to run it as often.

    Args:
        keep_compile: Take off DDP and DataParallel alone. A compiled model is evaluated as it was
            trained then: compiled, with the same bits.
    """
    compiled: Any = None
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:  # torch.compile; its class is costly to import
            compiled, model = model, model.get_submodule("_orig_mod")
        elif not keep_compile or compiled is None:
            return model
        elif compiled._orig_mod is model:
            return compiled  # type: ignore[no-any-return]
        else:  # around DDP: the same around the module alone
            return type(compiled)(model, compiled.dynamo_ctx)  # type: ignore[no-any-return]


def reshard(model: nn.Module, *, after_error: bool = False) -> None:
    """Let the modules of FSDP2 hold their own parts again, which some do not after a forward pass.

    Nothing is sent. Behind an error in a forward pass their state has to be told of it.
    """
    parts = [part for part in model.modules() if is_fsdp(part)]
    for part in parts:
        with suppress(RuntimeError, AttributeError):  # only roots that have run can be told
            getattr(part, "reset_iter_state", int)() if after_error else None
    for part in parts:
        part.reshard()  # type: ignore[operator]


def own_part(tensor: Any) -> Tensor:
    """The memory that this rank has of a DTensor; another tensor as it is."""
    return tensor._local_tensor if is_sharded(tensor) else tensor  # type: ignore[no-any-return]


def sharded_like(value: Tensor, own: Any) -> Tensor:
    """Of a tensor that every rank has, the part that it has of another; nothing is sent."""
    if not is_sharded(own) or is_sharded(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh = own.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, own.placements, src_data_rank=None)


def share_buffers(model: nn.Module) -> None:
    """Give every rank the buffers of rank 0, such as the running statistics of batch norm.

    >>> share_buffers(nn.BatchNorm1d(3))

    On the CPU the ranks' statistics differ after an epoch, and rank 0's are those that are saved:
    share them before evaluating, or the score is that of no saved model. All ranks call it.
    """
    for name, buffer in unwrap(model).named_buffers():
        refuse_sharded(buffer, f"buffer {name}")
        buffer.copy_(distributed.broadcast(buffer))


def distribute(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Move a model to its device and let it train together with the other ranks' copies.

    >>> model = distribute(nn.Linear(2, 1), "cpu")  # no process group: the bare model

    In a process group: `DistributedDataParallel`, on GPUs with synchronised batch norm (which
    does not exist on the CPU). A model without trainable parameters stays bare.

    Every rank must pass the same weights: seed all ranks alike before the model is made.

    Raises:
        TypeError: FSDP2 or tensor parallelism has divided the model already.
    """
    for name, parameter in model.named_parameters():
        if is_sharded(parameter):
            raise TypeError(
                f"{name} is a DTensor: FSDP2 or tensor parallelism has divided the model, and "
                "shares its gradients; use it as it is, without distribute()"
            )
    device = torch.device(device)
    model = model.to(device)
    trainable = any(parameter.requires_grad for parameter in model.parameters())
    if not (dist.is_available() and dist.is_initialized() and trainable):
        return model
    if device.type == "cpu":
        return _settled(DistributedDataParallel(model))
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return _settled(DistributedDataParallel(synchronised, device_ids=[device]))


def _settled(model: DistributedDataParallel) -> DistributedDataParallel:
    """Let DDP put its buckets in order now.

    It does so after its first backward pass, by the order in which gradients came. The first step
    of a run that was resumed would be summed up in another order than that of one that was not.
    """
    inner = model.module
    own = inner.__dict__.get("forward")
    tables = {
        id(part.weight)
        for part in inner.modules()
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.sparse
    }

    def zero_of(parameter: Tensor) -> Tensor:
        if id(parameter) in tables:  # DDP expects sparse gradients of these
            row = torch.zeros(1, dtype=torch.long, device=parameter.device)
            return nn.functional.embedding(row, parameter, sparse=True).sum() * 0
        real = torch.view_as_real(parameter) if parameter.is_complex() else parameter
        # The gradient has the strides of the zeros: DDP expects those of the parameter.
        return (real * torch.zeros_like(real)).sum()

    parameters = [parameter for parameter in inner.parameters() if parameter.requires_grad]
    inner.forward = lambda: sum(map(zero_of, parameters))
    try:
        for _ in range(2):  # the second forward pass orders the buckets
            model().backward()
    finally:
        del inner.forward
        if own is not None:
            inner.forward = own
    model.zero_grad(set_to_none=True)
    return model


def check_in_sync(model: nn.Module, **values: object) -> None:
    """Raise on every rank if the ranks' models differ, with the first tensor that does.

    >>> check_in_sync(nn.Linear(2, 1), step=100)

    Compares a digest of the bits of every parameter and buffer; all ranks call it. The part that a
    rank has of a DTensor is compared with the same part of other ranks, if some have it too.

    Args:
        **values: Others that are to be equal, such as `step=step`.

    Raises:
        RuntimeError: They differ; with the name and the ranks.
    """
    own = {name: ("", repr(value)) for name, value in values.items()}
    for name, tensor in unwrap(model).state_dict().items():
        if isinstance(tensor, Tensor):
            own[name] = _part_of(tensor), digest(tensor)
    everybody = distributed.all_gather(own)
    for name in own:
        found = [rank.get(name, ("", "")) for rank in everybody]
        first: dict[str, str] = {}
        others = [
            rank
            for rank, (part, value) in enumerate(found)
            if first.setdefault(part, value) != value
        ]
        if others:
            raise RuntimeError(
                f"{name} differs between the ranks: {', '.join(map(str, others))} have another one "
                "than rank 0; were they seeded alike, and did each take every step?"
            )


def _part_of(tensor: Any) -> str:
    """Which part of a tensor this rank has; the same for ranks that have the same."""
    if not is_sharded(tensor):
        return ""
    here = tensor.device_mesh.get_coordinate()
    return str(
        [
            None if p.is_replicate() else (p, at)
            for p, at in zip(tensor.placements, here, strict=True)
        ]
    )


def digest(tensor: Any) -> str:
    """Of the bits of a tensor, or of the part that this rank has of it."""
    data = own_part(tensor).detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return hashlib.blake2b(data, digest_size=16).hexdigest()
