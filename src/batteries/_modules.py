"""Modules and their wrappers: DistributedDataParallel, DataParallel, torch.compile."""

from __future__ import annotations

import hashlib
import itertools
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from batteries import distributed
from batteries._device import known_device
from batteries._foreign import brief
from batteries.distributed._launch import in_group
from batteries.distributed._messages import is_fsdp, is_sharded, refuse_sharded


def unwrap(model: nn.Module, *, keep_compile: bool = False) -> nn.Module:
    """Return the module inside all its wrappers.

    >>> model = nn.Linear(2, 1)
    >>> unwrap(nn.DataParallel(nn.DataParallel(model))) is model
    True

    Evaluate the unwrapped module. If one rank has fewer batches, the others do not hang. A model of
    FSDP2 has no wrapper, so every rank must call it equally often.

    Args:
        keep_compile: Remove only DDP and DataParallel. A compiled model stays compiled, because the
            outputs of the bare module may differ in their last bits.
    """
    compiled: Any = None
    as_module(model)
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:  # torch.compile, whose class takes long to import
            compiled, model = model, model.get_submodule("_orig_mod")
        elif not keep_compile or compiled is None:
            return model
        elif compiled._orig_mod is model:
            return compiled  # type: ignore[no-any-return]
        else:  # DDP was inside the compiled module
            return type(compiled)(model, compiled.dynamo_ctx)  # type: ignore[no-any-return]


def as_module(model: Any) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    raise TypeError(f"model is {brief(model)}; expected a torch.nn.Module")


def reshard(model: nn.Module, *, after_error: bool = False) -> None:
    """Let modules of FSDP2 release whole parameters that a forward pass has left in memory.

    Nothing is sent. With `after_error`, the state of an interrupted forward pass is reset first.
    """
    parts = [part for part in as_module(model).modules() if is_fsdp(part)]
    for part in parts if after_error else ():
        _reset(part)
    for part in parts:
        part.reshard()  # type: ignore[operator]


def _reset(part: Any) -> None:
    if hasattr(part, "reset_iter_state"):
        with suppress(RuntimeError, AttributeError):  # only roots that have run can do it
            part.reset_iter_state()
        return
    state = part._get_fsdp_state()  # older releases of torch have no function for it
    state._state_ctx.iter_forward_root = None
    for each in filter(None, (state, state._fsdp_param_group)):
        each._training_state = type(each._training_state).IDLE


def drop_unreduced(model: nn.Module) -> None:
    """Drop gradients that modules of FSDP2 have added up, but not reduced."""
    for part in filter(is_fsdp, model.modules()):
        state: Any = part._get_fsdp_state()  # type: ignore[operator]
        groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
        for each in itertools.chain(*(group.fsdp_params for group in groups if group)):
            each.unsharded_accumulated_grad = None
            if hasattr(each, "_unsharded_param"):
                each._unsharded_param.grad = None


def own_part(tensor: Any) -> Tensor:
    """This rank's part of a DTensor; another tensor unchanged."""
    return tensor._local_tensor if is_sharded(tensor) else tensor  # type: ignore[no-any-return]


def sharded_like(value: Tensor, own: Any) -> Tensor:
    """A whole tensor, sharded like `own`, without sending data."""
    if not is_sharded(own) or is_sharded(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh = own.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, own.placements, src_data_rank=None)


def share_buffers(model: nn.Module) -> None:
    """Give every rank the buffers of rank 0, such as the running statistics of batch norm.

    >>> share_buffers(nn.BatchNorm1d(3))

    All ranks call it. On the CPU the ranks' statistics differ after an epoch, and checkpoints have
    those of rank 0. Share them before you evaluate, so that the score is that of the saved model.
    """
    for name, buffer in unwrap(model).named_buffers():
        refuse_sharded(buffer, f"buffer {name}")
        buffer.detach().copy_(distributed.broadcast(buffer))


def distribute(model: nn.Module, device: torch.device | str | int) -> nn.Module:
    """Move a model to its device and, in a process group, wrap it in `DistributedDataParallel`.

    >>> model = distribute(nn.Linear(2, 1), "cpu")  # no process group: the bare model

    DDP gives all ranks the weights of rank 0. A model without trainable parameters is not wrapped,
    so its ranks keep their own: call `seed_all` on all ranks before you create the model. On GPUs,
    batch norm is synchronised, which torch does not offer on the CPU.

    Args:
        device: As for `to_device`.

    Raises:
        TypeError: FSDP2 or tensor parallelism has sharded the model already.
        ValueError: There is no such device.
    """
    for name, parameter in as_module(model).named_parameters():
        if is_sharded(parameter):
            raise TypeError(
                f"{name} is a DTensor: FSDP2 or tensor parallelism has sharded the model, and "
                "reduces its gradients; use the model without distribute()"
            )
    device = known_device(device)
    model = model.to(device)
    trainable = any(parameter.requires_grad for parameter in model.parameters())
    if not (in_group() and trainable):
        return model
    if device.type == "cpu":
        return _settled(DistributedDataParallel(model))
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return _settled(DistributedDataParallel(synchronised, device_ids=[device]))


def _settled(model: DistributedDataParallel) -> DistributedDataParallel:
    """Let DDP order its buckets now.

    DDP orders them after its first backward pass, by the order of the gradients. The first step of
    a resumed run would otherwise add up in another order than an undisturbed run.
    """
    inner = model.module
    own = inner.__dict__.get("forward")
    tables = {
        id(part.weight)
        for part in inner.modules()
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.sparse
    }

    def zero_of(parameter: Tensor) -> Tensor:
        if id(parameter) in tables:  # DDP expects sparse gradients here
            row = torch.zeros(1, dtype=torch.long, device=parameter.device)
            return nn.functional.embedding(row, parameter, sparse=True).sum() * 0
        real = torch.view_as_real(parameter) if parameter.is_complex() else parameter
        # The gradient has the strides of the zeros: DDP expects those of the parameter.
        return (real * torch.zeros_like(real)).sum()

    parameters = [parameter for parameter in inner.parameters() if parameter.requires_grad]
    inner.forward = lambda _: sum(map(zero_of, parameters))
    try:
        for _ in range(2):  # the second forward pass orders the buckets
            model(None).backward()  # on a GPU, DDP fails without an input
    finally:
        del inner.forward
        if own is not None:
            inner.forward = own
    model.zero_grad(set_to_none=True)
    return model


def check_in_sync(model: nn.Module, **values: object) -> None:
    """Raise on every rank if the ranks' models differ, with the name of the first such tensor.

    >>> check_in_sync(nn.Linear(2, 1), step=100)

    All ranks call it. It compares digests of the bits of every parameter and buffer. A rank's part
    of a DTensor is compared with ranks that have the same part.

    Args:
        **values: Other values that must be equal, such as `step=step`.

    Raises:
        RuntimeError: The ranks differ. The message has the name and the ranks.
    """
    own = {name: ("", repr(value)) for name, value in values.items()}
    reshard(module := unwrap(model))
    # A state dict would leave some buffers out.
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        own[name] = _part_of(tensor), digest(tensor)
    everybody = distributed.all_gather(own)
    for name in dict.fromkeys(itertools.chain(*everybody)):
        lacking = [number for number, rank in enumerate(everybody) if name not in rank]
        if lacking:
            raise RuntimeError(
                f"{name} is missing on rank {', '.join(map(str, lacking))}: all ranks must "
                "build the model in the same way"
            )
        found = [rank[name] for rank in everybody]
        first: dict[str, str] = {}
        others = [
            rank
            for rank, (part, value) in enumerate(found)
            if first.setdefault(part, value) != value
        ]
        if others:
            raise RuntimeError(
                f"{name} differs between the ranks: it has another value on rank "
                f"{', '.join(map(str, others))}. Check that all ranks had the same seed and took "
                "the same steps"
            )


def _part_of(tensor: Any) -> str:
    """A text for the part of a tensor on this rank, the same on ranks with the same part."""
    if not is_sharded(tensor):
        return ""
    places = zip(tensor.placements, tensor.device_mesh.get_coordinate(), strict=True)
    return str([None if placement.is_replicate() else (placement, at) for placement, at in places])


def digest(tensor: Any) -> str:
    """A digest of the bits, shape and dtype of a tensor, or of this rank's part of a DTensor."""
    own = own_part(tensor).detach().resolve_conj().resolve_neg()
    own = own if own.layout == torch.strided else own.to_dense()
    data = own.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    form = hashlib.blake2b(f"{tuple(own.shape)} {own.dtype};".encode(), digest_size=16)
    form.update(data)
    return form.hexdigest()
