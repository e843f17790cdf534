"""Moving a nested batch: 12 small tensors and 6 strings in tuples in lists in a dict."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measure import Contender, peer, report, take_turns
from torch import Tensor

from batteries import to_device

TURNS = 40
CALLS = 500

Batch = dict[str, list[tuple[Tensor, Tensor, str]]]


def make_batch() -> Batch:
    return {
        field: [(torch.zeros(2), torch.ones(2), name) for name in ["first", "second"]]
        for field in ["image", "mask", "target"]
    }


def tensors_in(batch: Batch) -> list[Tensor]:
    return [part for rows in batch.values() for row in rows for part in row[:2]]


def bare(tensors: list[Tensor], device: torch.device) -> None:
    for tensor in tensors:
        tensor.to(device)


def bind(module: str, function: str, batch: Batch, device: torch.device) -> Contender | None:
    found = peer(module)
    if found is None:
        return None
    move: Callable[..., Any] = getattr(found, function)
    assert move(batch, device).keys() == batch.keys()
    return partial(move, batch, device)


def main() -> None:
    batch, cpu, meta = make_batch(), torch.device("cpu"), torch.device("meta")
    tensors = tensors_in(batch)
    for title, device in [("CPU to CPU", cpu), ('to another device, "meta"', meta)]:
        contenders: dict[str, Contender | None] = {
            "12 bare .to(device)": partial(bare, tensors, device),
            "batteries": partial(to_device, batch, device),
            "torchtnt": bind("torchtnt.utils.device", "copy_data_to_device", batch, device),
            "ignite": bind("ignite.utils", "convert_tensor", batch, device),
            "Lightning Fabric": bind(
                "lightning.fabric.utilities", "move_data_to_device", batch, device
            ),
            "accelerate": bind("accelerate.utils", "send_to_device", batch, device),
        }
        timings = take_turns(contenders, turns=TURNS, calls=CALLS)
        report(f"to_device: {title}", timings, reference="12 bare .to(device)")
