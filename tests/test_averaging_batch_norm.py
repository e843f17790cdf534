"""Batch norm's statistics, computed again."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from torch import Tensor, nn
from torch.optim import swa_utils
from wandering import BATCHES, make_model

from batteries import distribute, distributed, unwrap, update_bn


def test_update_bn_is_torch_s() -> None:
    """With batches of one size, the statistics are those of torch's update_bn."""
    model, oracle = make_model(), make_model()
    model[1].momentum = None
    model.train()
    model[0].eval()
    update_bn(model, BATCHES)
    swa_utils.update_bn(BATCHES, oracle)
    torch.testing.assert_close(model.state_dict(), oracle.state_dict())
    assert [part.training for part in model.modules()] == [True, False, True, True]
    assert model[1].momentum is None


class Often(nn.Module):
    """Batch norms that are called twice, for some batches, and never."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.large, self.never = (nn.BatchNorm1d(3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(x) + self.twice(2 * x + 5)
        return self.large(x) if len(x) == 16 else x


def test_each_call_counts() -> None:
    """A batch norm has the mean of its calls, however many there are in a batch, as torch's."""
    model, oracle = Often(), Often()
    model.never(BATCHES[0])
    before = copy.deepcopy(model.never.state_dict())
    update_bn(model, [*BATCHES[:3], BATCHES[3][:0]])
    swa_utils.update_bn(BATCHES[:3], oracle)
    for name in ("twice", "large"):
        found, expected = model.get_submodule(name), oracle.get_submodule(name)
        torch.testing.assert_close(found.state_dict(), expected.state_dict())
    torch.testing.assert_close(model.never.state_dict(), before, rtol=0, atol=0)
    update_bn(model, [*BATCHES[:3], *torch.split(BATCHES[3] + 100, 8)])
    torch.testing.assert_close(model.large.state_dict(), oracle.large.state_dict())


def test_statistics_of_16_bits() -> None:
    """The statistics of a 16-bit model are rounded once, whatever the number of batches."""
    torch.manual_seed(0)
    batches = (torch.randn(500, 16, 3) + 1).bfloat16()
    model = nn.Sequential(nn.BatchNorm1d(3)).bfloat16()
    update_bn(model, batches)
    expected = batches.double().mean((0, 1))
    torch.testing.assert_close(model[0].running_mean.double(), expected, rtol=4e-3, atol=0)


def test_compiled_parts() -> None:
    """A compiled part of a model is not compiled anew, and sees each batch, at each use."""
    graphs, model, oracle = [], make_model(), make_model()

    def backend(graph: Any, inputs: Any) -> Any:  # noqa: ARG001
        graphs.append(graph)
        return graph.forward

    compiled: Any = torch.compile(model[:2], backend=backend)
    whole = nn.Sequential(compiled, model[2])
    for batches in (BATCHES[:2], BATCHES[2:]):
        update_bn(whole, batches)
        swa_utils.update_bn(batches, oracle)
        torch.testing.assert_close(model.state_dict(), oracle.state_dict())
        whole(BATCHES[0])
        oracle(BATCHES[0])
        assert len(graphs) == 1


def numpy_statistics(batches: list[Tensor]) -> tuple[Any, Any]:
    """Mean and variance of the first layer's output, weighted by the samples, in float64."""
    model = make_model(torch.float64)
    hidden = [model[0](batch.double()).detach().numpy() for batch in batches]
    sizes = np.array([len(batch) for batch in batches])
    means = np.stack([values.mean(0) for values in hidden])
    variances = np.stack([values.var(0, ddof=1) for values in hidden])
    return np.average(means, 0, sizes), np.average(variances, 0, sizes)


def ragged(rank: int | None = None) -> list[Tensor]:
    rows = BATCHES.reshape(-1, 3)[:75]
    batches = [*torch.split(rows[:40], 16), *torch.split(rows[40:], 10)]
    return batches if rank is None else [batches[:5], [], batches[5:]][rank]


def norm_on_ranks() -> tuple[Tensor, Tensor, int]:
    model = distribute(make_model(), "cpu")
    update_bn(model, ragged(distributed.rank()))
    norm: Any = unwrap(model)[1]  # type: ignore[index]
    return norm.running_mean, norm.running_var, int(norm.num_batches_tracked)


def test_update_bn_of_ranks() -> None:
    """Three ranks, one without a batch, compute what one process does, the same bits on each."""
    mean, variance = numpy_statistics(ragged())
    for found in run_ranks(norm_on_ranks, world_size=3):
        np.testing.assert_allclose(found[0], mean, rtol=1e-5)
        np.testing.assert_allclose(found[1], variance, rtol=1e-5)
        assert found[2] == len(ragged())
    results = run_ranks(norm_on_ranks, world_size=3)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def fail_on_one_rank() -> Tensor:
    model = make_model()
    before = copy.deepcopy(model.state_dict())

    def loader() -> Iterator[Tensor]:
        yield BATCHES[0]
        if distributed.rank() == 1:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        update_bn(model, loader())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    return torch.tensor(1)


def test_update_bn_that_fails() -> None:
    """An error on one rank is raised on all, and the model has its old statistics."""
    assert run_ranks(fail_on_one_rank) == [1, 1]


class ByName(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm1d(3), nn.Dropout(0.9)
        self.forward = getattr(self, kind, self.forward)  # type: ignore[method-assign]

    def of_a_dict(self, batch: dict[str, Tensor]) -> Tensor:
        return self.norm(self.dropout(batch["x"]))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.dropout(x))  # type: ignore[no-any-return]

    def of_anything(self, **batch: Tensor) -> Tensor:
        return self.norm(self.dropout(batch["x"]))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict", "of_a_dict", "of_anything"])
def test_update_bn_of_any_batch(kind: str) -> None:
    """Tensors, tuples and dicts reach the model, with dropout off."""
    model = ByName(kind)
    batch = {"tensor": BATCHES[0], "tuple": (BATCHES[0], torch.zeros(16))}.get(
        kind, {"scale": torch.tensor(2.0), "y": 0.5, "x": BATCHES[0]}
    )
    update_bn(model, [batch])
    torch.testing.assert_close(model.norm.running_mean, BATCHES[0].mean(0))


def test_update_bn_without_batches() -> None:
    """A loader without batches is an error, and a model without batch norm is left alone."""
    with pytest.raises(ValueError, match="no rank's loader has a batch"):
        update_bn(make_model(), [])
    update_bn(nn.Linear(2, 1), [])
