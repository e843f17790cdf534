"""Modules and their wrappers: DistributedDataParallel, DataParallel, torch.compile."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from batteries import distributed


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module that the user wrote, from under every wrapper.

    >>> model = nn.Linear(2, 1)
    >>> unwrap(nn.DataParallel(nn.DataParallel(model))) is model
    True

    Evaluate the unwrapped module: a rank without a batch then hangs nobody.
    """
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:  # torch.compile; its class is costly to import
            model = model.get_submodule("_orig_mod")
        else:
            return model


def share_buffers(model: nn.Module) -> None:
    """Give every rank the buffers of rank 0, such as the running statistics of batch norm.

    >>> share_buffers(nn.BatchNorm1d(3))

    On the CPU the ranks' statistics differ after an epoch, and rank 0's are those that are saved:
    share them before evaluating, or the score is that of no saved model. All ranks call it.
    """
    for buffer in unwrap(model).buffers():
        buffer.copy_(distributed.broadcast(buffer))


def distribute(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Move a model to its device and let it train together with the other ranks' copies.

    >>> model = distribute(nn.Linear(2, 1), "cpu")  # no process group: the bare model

    In a process group: `DistributedDataParallel`, on GPUs with synchronised batch norm (which
    does not exist on the CPU). A model without trainable parameters stays bare.

    Every rank must pass the same weights: seed all ranks alike before the model is made.
    """
    device = torch.device(device)
    model = model.to(device)
    trainable = any(parameter.requires_grad for parameter in model.parameters())
    if not (dist.is_available() and dist.is_initialized() and trainable):
        return model
    if device.type == "cpu":
        return DistributedDataParallel(model)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return DistributedDataParallel(synchronised, device_ids=[device])
