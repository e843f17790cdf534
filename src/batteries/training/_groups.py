"""Parameter groups for an optimizer: with and without weight decay, and layer by layer."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from batteries._arrays import as_names
from batteries._foreign import brief
from batteries._modules import unwrap
from batteries._numbers import as_number


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    no_decay: Iterable[str] = (),
    lr: float | None = None,
    layers: Sequence[nn.Module | Tensor | Sequence[nn.Module | Tensor]] = (),
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Group parameters for an optimizer: norms, biases and embeddings get no weight decay.

    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    >>> groups = parameter_groups(model, weight_decay=0.1)
    >>> [(group["weight_decay"], len(group["params"])) for group in groups]
    [(0.1, 1), (0.0, 4)]
    >>> optimizer = torch.optim.AdamW(groups, lr=1e-3)

    Each trainable parameter is in one group, in the model's order. Frozen ones are left out. No
    weight decay applies to parameters with fewer than 2 dimensions or with "bias" in their own
    name, to those of `nn.Embedding` and `nn.EmbeddingBag`, to those of a class whose name contains
    "Norm" (unless it is a linear or convolutional layer), and to a tied weight if one of its places
    has none.

    Args:
        model: The model, wrapped or not.
        weight_decay: The decay of the other parameters, 0 or more.
        no_decay: Names or patterns of more parameters without weight decay, such as
            `["pos_embed", "*.scale"]`.
        lr: The learning rate of parameters that are in no layer, such as the head.
        layers: The layers from the input to the output: modules, parameters or lists of them,
            such as `[[model.patch_embed, model.pos_embed], *model.blocks]`. Earlier layers get
            lower learning rates.
        layer_decay: The factor from one layer to the layer before it, such as 0.75. Of n layers,
            the last has `lr * layer_decay` and the first `lr * layer_decay**n` (ELECTRA, BEiT).

    Raises:
        ValueError: Some of `lr`, `layers` and `layer_decay` are missing; `weight_decay` is
            negative; no parameter matches a pattern; a parameter of `layers` is in two of them, or
            not in the model; no parameter is trainable.
        TypeError: `weight_decay`, `lr` or `layer_decay` is not a number; `layers` is no list, or
            has something else, such as a name.
    """
    if isinstance(layers, Tensor) or not isinstance(layers, Iterable):
        raise TypeError(f"layers is {brief(layers)}; expected a list of modules or parameters")
    layers = list(layers)
    if len({lr is None, not layers, layer_decay is None}) > 1:
        raise ValueError("layer-wise decay needs all three of lr=, layers= and layer_decay=")
    model, weight_decay = unwrap(model), as_number(weight_decay, "weight_decay")
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay is {weight_decay}; expected 0 or more")
    lr = None if lr is None else as_number(lr, "lr")
    layer_decay = None if layer_decay is None else as_number(layer_decay, "layer_decay")
    free = _without_decay(model, as_names(no_decay))
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
        owner = model.get_submodule(f".{place}".partition(".parametrizations.")[0][1:])
        # A linear layer gets weight decay, even if its class is called NormedLinear, say.
        norm = "Norm" in type(owner).__name__ and not isinstance(owner, nn.Linear | _ConvNd)
        apart = norm or isinstance(owner, nn.Embedding | nn.EmbeddingBag)
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            full = f"{place}.{name}".removeprefix(".").replace("_orig_mod.", "")
            matching = {pattern for pattern in patterns if fnmatch.fnmatchcase(full, pattern)}
            unused -= matching
            if apart or matching or "bias" in name or parameter.ndim < 2:
                free.add(parameter)
    if unused:
        raise ValueError(
            f"no parameter's name matches no_decay's {', '.join(sorted(unused))}; expected names "
            "of model.named_parameters(), or patterns such as '*.scale'"
        )
    return free


def _depths(model: nn.Module, layers: Sequence[Any]) -> dict[Tensor, int]:
    """The layers of the parameters that are in one. One place of a tied weight is enough."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    depths: dict[Tensor, int] = {}
    for depth, layer in enumerate(layers):
        parts = layer if isinstance(layer, list | tuple) else [layer]
        for part in parts:
            if not isinstance(part, nn.Module | Tensor):
                raise TypeError(
                    f"layers[{depth}] has {brief(part)}; expected modules or parameters"
                )
        each = ([part] if isinstance(part, Tensor) else part.parameters() for part in parts)
        for parameter in chain.from_iterable(each):
            if parameter not in names:
                raise ValueError(
                    f"layers[{depth}] has parameters that are not in the model: pass modules or "
                    "parameters of this model"
                )
            if depths.setdefault(parameter, depth) != depth:
                raise ValueError(
                    f"{names[parameter]} is in layers {depths[parameter]} and {depth}, but a "
                    "parameter has one learning rate: pass modules that share no parameter"
                )
    return depths
