"""Every parameter that is trained is in one group, and has the decay that is its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import register_parametrization

from batteries.training import parameter_groups


class ScaleNorm(nn.Module):
    """A norm of the user's own, whose weight is no vector."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(2, 2))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.position = nn.Parameter(torch.zeros(1, 3, 4))
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(4, 2, 8) for _ in range(2))
        self.lstm = nn.LSTM(4, 4)
        self.conv = weight_norm(nn.Conv1d(4, 4, 3))
        self.scale = nn.Parameter(torch.ones(4))
        self.own, self.image = ScaleNorm(), nn.LayerNorm((2, 3))
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.embed.weight  # tied
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def names_in(model: nn.Module, parameters: list[Tensor]) -> set[str]:
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter] for parameter in parameters}


def test_every_parameter_once() -> None:
    """Weights of linear, recurrent and convolutional layers decay; all others are in the rest."""
    model = Model()
    decayed, rest = parameter_groups(nn.DataParallel(model), 0.1, no_decay=["pos*"])
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    both = decayed["params"] + rest["params"]
    expected = {parameter for parameter in model.parameters() if parameter.requires_grad}
    assert len(both) == len({*both}) == len(expected)
    assert {*both} == expected
    block = {"self_attn.in_proj_weight", "self_attn.out_proj.weight"}
    block |= {"linear1.weight", "linear2.weight"}
    assert names_in(model, decayed["params"]) == {
        *(f"blocks.{i}.{name}" for i in range(2) for name in block),
        "lstm.weight_ih_l0", "lstm.weight_hh_l0",
        "conv.parametrizations.weight.original0", "conv.parametrizations.weight.original1",
    }  # fmt: skip
    torch.optim.AdamW([decayed, rest], lr=1e-3)


def test_classes_and_compiled_parts() -> None:
    """A linear layer decays, whatever its class is called; patterns know no wrappers."""

    class NormedLinear(nn.Linear):
        pass

    inside: Any = torch.compile(NormedLinear(2, 2), backend="eager")
    model = nn.Sequential(inside, nn.Linear(2, 2))
    decayed, _ = parameter_groups(model, 0.1, no_decay=["1.weight"])
    assert names_in(model, decayed["params"]) == {"0._orig_mod.weight"}
    _, rest = parameter_groups(model, 0.1, no_decay=["0.weight"])
    assert "0._orig_mod.weight" in names_in(model, rest["params"])


def test_layers() -> None:
    """Each layer learns slower than the one above it, and what is in none at the rate itself."""
    model = Model()
    layers = [model.embed, *model.blocks]
    groups = parameter_groups(model, 0.1, lr=1.0, layers=layers, layer_decay=0.5)
    rates = {p: group["lr"] for group in groups for p in group["params"]}
    assert {rates[model.embed.weight], rates[model.position]} == {0.125, 1.0}
    assert [rates[p] for p in model.blocks.parameters()] == [0.25] * 12 + [0.5] * 12
    assert len(rates) == len([p for p in model.parameters() if p.requires_grad])


def test_layers_of_parameters() -> None:
    """Positions are in no module of their own, and learn with the layer that they are put into."""
    model = Model()
    first: list[nn.Module | Tensor] = [model.embed, model.position]
    groups = parameter_groups(model, 0.1, lr=1.0, layers=[first, *model.blocks], layer_decay=0.5)
    rates = {p: group["lr"] for group in groups for p in group["params"]}
    assert {rates[model.embed.weight], rates[model.position]} == {0.125}
    assert rates[model.scale] == 1.0


def test_slips() -> None:
    """What cannot be meant is named."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="needs all three"):
        parameter_groups(model, 0.1, layer_decay=0.9)
    with pytest.raises(ValueError, match="no parameter's name matches no_decay's pos_embed"):
        parameter_groups(model, 0.1, no_decay=["pos_embed"])
    with pytest.raises(ValueError, match=r"0\.weight is in layers 0 and 1"):
        parameter_groups(model, 0.1, lr=1.0, layer_decay=0.9, layers=[model[0], model])
    with pytest.raises(TypeError, match=r"layers\[1\] has '1'; expected modules or parameters"):
        parameter_groups(model, 0.1, lr=1.0, layer_decay=0.9, layers=[model[0], "1"])  # type: ignore[list-item]
    for layers in (model[0].weight, model[0], None):
        with pytest.raises(TypeError, match=r"(?s)layers is .*; expected a list of modules"):
            parameter_groups(model, 0.1, lr=1.0, layer_decay=0.9, layers=layers)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weight_decay is -0\.1; expected 0 or more"):
        parameter_groups(model, -0.1)
    with pytest.raises(ValueError, match="no parameter that can be trained"):
        parameter_groups(model.requires_grad_(False), 0.1)


def test_one_pattern() -> None:
    """One name may be passed in place of a list of names."""
    model = nn.Sequential(nn.Linear(2, 2))
    assert len(parameter_groups(model, 0.1, no_decay="0.weight")) == 1


class Unchanged(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_parametrized_places() -> None:
    """A weight under a parametrization has the decay of its place: none in embeddings and norms."""
    model = nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm((2, 4)), nn.Linear(4, 4))
    for module in model:
        register_parametrization(module, "weight", Unchanged())
    decayed, _ = parameter_groups(model, 0.1)
    assert names_in(model, decayed["params"]) == {"2.parametrizations.weight.original"}
