"""Parameters as an optimizer takes them: with and without weight decay, and layer by layer."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from batteries._modules import unwrap


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    no_decay: Iterable[str] = (),
    lr: float | None = None,
    layers: Sequence[nn.Module] = (),
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Group parameters for an optimizer: norms, biases and embeddings are without weight decay.

    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    >>> groups = parameter_groups(model, weight_decay=0.1)
    >>> [(group["weight_decay"], len(group["params"])) for group in groups]
    [(0.1, 1), (0.0, 4)]
    >>> optimizer = torch.optim.AdamW(groups, lr=1e-3)

    Every parameter is in one group, in the model's order. A frozen one is in none, and a tied
    weight in one: without decay, if any of its places is. Vectors and numbers have none either, as
    have the parameters of a class whose name has "Norm" in it.

    Args:
        no_decay: Names of other parameters without decay, or patterns: `["pos_embed", "*.scale"]`.
        lr: The learning rate of what is in no layer, such as the head.
        layers: The modules from the input to the output, each with a lower rate than the next:
            `[model.embed, *model.blocks]`.
        layer_decay: The factor between two of them, such as 0.75: of n layers the last has
            `lr * layer_decay` and the first `lr * layer_decay**n` (ELECTRA, BEiT).

    Raises:
        ValueError: One of `lr`, `layers` and `layer_decay` without the others; a pattern that is
            no parameter's; a parameter in two layers; nothing that can be trained.
    """
    if len({lr is None, not layers, layer_decay is None}) > 1:
        raise ValueError("layer-wise decay needs all three of lr=, layers= and layer_decay=")
    model = unwrap(model)
    free = _without_decay(model, [no_decay] if isinstance(no_decay, str) else list(no_decay))
    depths = _depths(model, layers)
    groups: dict[tuple[int, bool], list[Tensor]] = defaultdict(list)
    for parameter in model.parameters():
        if parameter.requires_grad:
            depth = depths.get(parameter, len(layers))
            groups[depth, parameter in free].append(parameter)
    if not groups:
        raise ValueError("the model has no parameter that can be trained")
    found = []
    for (depth, without), parameters in sorted(groups.items(), key=lambda each: each[0]):
        group = {"params": parameters, "weight_decay": 0.0 if without else weight_decay}
        if lr is not None and layer_decay is not None:
            group["lr"] = lr * layer_decay ** (len(layers) - depth)
        found.append(group)
    return found


def _without_decay(model: nn.Module, patterns: list[str]) -> set[Tensor]:
    free, unused = set(), set(patterns)
    for place, module in model.named_modules(remove_duplicate=False):
        apart = (
            isinstance(module, nn.Embedding | nn.EmbeddingBag) or "Norm" in type(module).__name__
        )
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            full = f"{place}.{name}" if place else name
            matching = {pattern for pattern in patterns if fnmatch.fnmatchcase(full, pattern)}
            unused -= matching
            if apart or matching or "bias" in name or parameter.ndim < 2:
                free.add(parameter)
    if unused:
        raise ValueError(f"no_decay has {', '.join(sorted(unused))}: no parameter has such a name")
    return free


def _depths(model: nn.Module, layers: Sequence[nn.Module]) -> dict[Tensor, int]:
    """The layer of each parameter that is in one; of one tied to what is in none, too."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    depths: dict[Tensor, int] = {}
    for depth, layer in enumerate(layers):
        for parameter in layer.parameters():
            if parameter not in names:
                raise ValueError(f"layer {depth} has parameters that are not the model's")
            if depths.setdefault(parameter, depth) != depth:
                raise ValueError(
                    f"{names[parameter]} is in layers {depths[parameter]} and {depth}: a parameter "
                    "has one learning rate, so name the modules that have it once"
                )
    return depths
