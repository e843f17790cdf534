"""Clipping by the norm of all gradients, also of those that are sharded among ranks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from batteries._foreign import brief
from batteries._modules import own_part
from batteries.distributed import all_reduce
from batteries.distributed._messages import is_sharded


@torch.no_grad()
def clip(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale gradients so that their norm is at most `max_norm`; return the norm before scaling.

    The ranks of each mesh add up the squared norms of its DTensors. The rest is local arithmetic.
    """
    meshes: dict[Any, list[Any]] = defaultdict(list)
    one = isinstance(parameters, Tensor) or not isinstance(parameters, Iterable)
    for parameter in [parameters] if one else parameters:
        if not isinstance(parameter, Tensor):
            raise TypeError(f"clip got {brief(parameter)}; expected an optimizer, or parameters")
        gradient: Any = parameter.grad
        if gradient is not None:
            meshes[gradient.device_mesh if is_sharded(gradient) else None].append(gradient)
    if not meshes:
        return torch.zeros((), device="cpu")
    norms: list[Tensor] = [whole(torch.nn.utils.get_total_norm(part)) for part in meshes.values()]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    if max_norm < math.inf:
        # As in torch: multiplying by 1 needs no wait for the device, a condition would.
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        devices: dict[torch.device, list[Tensor]] = defaultdict(list)
        for gradient in map(own_part, chain.from_iterable(meshes.values())):
            devices[gradient.device].append(gradient)
        for device, gradients in devices.items():
            torch._foreach_mul_(gradients, factor.to(device))
    return norm


def share_overflow(scaler: Any, optimizer: Optimizer) -> None:
    """Let all ranks of each mesh know of a gradient that is not finite on one of them.

    Torch's scaler tells only the ranks that divide the first gradient. The others would step.
    """
    gradients: list[Any] = [p.grad for group in optimizer.param_groups for p in group["params"]]
    meshes = dict.fromkeys(each.device_mesh for each in gradients if is_sharded(each))
    if not (meshes and scaler.is_enabled()):
        return
    if not scaler._found_inf_per_device(optimizer):
        scaler.unscale_(optimizer)
    for found in scaler._found_inf_per_device(optimizer).values():
        for mesh in meshes:
            for dimension in range(mesh.ndim):
                group = mesh.get_group(dimension)
                found.copy_(all_reduce(found, "max", check=False, group=group))


def whole(number: Any) -> Any:
    """The full value if the number is a DTensor. All ranks of its mesh call it."""
    return number.full_tensor() if is_sharded(number) else number
