"""The norm of all gradients, whichever rank has them, and gradients made smaller by it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from batteries._modules import own_part
from batteries.distributed._messages import is_sharded


@torch.no_grad()
def clip(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale gradients so that their norm is at most `max_norm`; the norm that they had.

    Those of each mesh are summed up by their own ranks. The rest is arithmetic on local memory.
    """
    meshes: dict[Any, list[Any]] = defaultdict(list)
    for parameter in parameters:
        gradient: Any = parameter.grad
        if gradient is not None:
            meshes[gradient.device_mesh if is_sharded(gradient) else None].append(gradient)
    if not meshes:
        return torch.zeros(())
    norms: list[Tensor] = [whole(torch.nn.utils.get_total_norm(part)) for part in meshes.values()]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    if max_norm < math.inf:
        # As torch does it: a product with 1 where there is nothing to clip waits for no device.
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        devices: dict[torch.device, list[Tensor]] = defaultdict(list)
        for gradient in map(own_part, chain.from_iterable(meshes.values())):
            devices[gradient.device].append(gradient)
        for device, gradients in devices.items():
            torch._foreach_mul_(gradients, factor.to(device))
    return norm


def whole(number: Any) -> Any:
    """A number of a DTensor as every rank has it; all ranks of its mesh ask for it."""
    return number.full_tensor() if is_sharded(number) else number
