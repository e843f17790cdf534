from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from batteries import distribute, distributed, seed_all, share_buffers, unwrap
from batteries._modules import _settled


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 1))


def compiled(model: nn.Module) -> nn.Module:
    wrapped: Any = torch.compile(model, backend="eager")
    assert isinstance(wrapped, nn.Module)
    return wrapped


class Own(nn.Module):
    """Has a child that is called as wrappers call theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(1, 1)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        DataParallel,
        compiled,
        lambda model: compiled(DataParallel(model)),
        lambda model: DataParallel(compiled(DataParallel(compiled(model)))),
    ],
)
def test_unwrap(wrap: object) -> None:
    """The module that the user wrote comes back from under any nesting of wrappers."""
    model = small()
    assert unwrap(wrap(model)) is model  # type: ignore[operator]


@pytest.mark.parametrize("outside", [False, True])
def test_unwrap_keeps_compile(outside: bool) -> None:
    """With `keep_compile` only the wrapper of the ranks goes, and nothing is compiled again."""
    model, graphs = nn.Linear(2, 1), []

    def backend(graph: Any, inputs: Any) -> Any:  # noqa: ARG001
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compile_it: Any = functools.partial(torch.compile, backend=backend)
    wrapped = compile_it(DataParallel(model)) if outside else DataParallel(compile_it(model))
    for _ in range(2):
        bare = unwrap(wrapped, keep_compile=True)
        assert bare._orig_mod is model
        assert torch.equal(bare(torch.ones(3, 2)), model(torch.ones(3, 2)))
    assert len(graphs) == 1
    assert unwrap(model, keep_compile=True) is model
    assert unwrap(wrapped) is model


def test_unwrap_keeps_own_names() -> None:
    """A user's own attribute called `module` is not a wrapper's."""
    own = Own()
    assert unwrap(own) is own


def test_distribute_alone() -> None:
    """Without a process group the model itself comes back, on its device."""
    model = small()
    assert distribute(model, "cpu") is model
    assert distribute(small(), "meta")[0].weight.device.type == "meta"  # type: ignore[index]


def statistics_after_training() -> tuple[bool, Tensor]:
    seed_all(0)
    model = distribute(small(), "cpu")
    seed_all(0, rank=distributed.rank())
    model(torch.randn(8, 4)).sum().backward()
    bare = unwrap(model)
    bare.register_buffer("learned", torch.ones(2, requires_grad=True))
    before = [buffer.clone() for buffer in bare.buffers()]
    share_buffers(model)
    changed = any(not a.equal(b) for a, b in zip(before, bare.buffers(), strict=True))
    return changed, torch.cat([buffer.flatten() for buffer in bare.buffers()])


def test_share_buffers() -> None:
    """Every rank gets rank 0's statistics, which are those that are saved."""
    (changed, first), (other_changed, second) = run_ranks(statistics_after_training)
    assert (changed, other_changed) == (False, True)
    assert first.equal(second)


def train_a_step() -> tuple[bool, bool, bool, Tensor]:
    seed_all(0)
    model = small()
    wrapped = distribute(model, "cpu")
    seed_all(0, rank=distributed.rank())
    wrapped(torch.randn(8, 4)).sum().backward()
    frozen = nn.Linear(1, 1).requires_grad_(False)
    gradient = model[0].weight.grad
    assert isinstance(gradient, Tensor)
    return (
        isinstance(wrapped, DistributedDataParallel),
        unwrap(compiled(wrapped)) is model,
        distribute(frozen, "cpu") is frozen,
        gradient,
    )


def test_distribute_in_a_group() -> None:
    """In a group the ranks share their gradients, and unwrap sees through it."""
    (*first, gradient), (*second, other_gradient) = run_ranks(train_a_step)
    assert first == second == [True, True, True]
    assert gradient.equal(other_gradient)
    assert gradient.abs().sum() > 0


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 2, sparse=True)
        self.turn = nn.Parameter(torch.ones(2, dtype=torch.complex64))

    def forward(self, index: Tensor) -> Tensor:
        turned: Tensor = (self.table(index) * self.turn).abs().sum()
        return turned


def train_odd_parameters() -> tuple[list[float], Tensor]:
    seed_all(0)
    model = Odd()
    alone = Odd()
    alone.load_state_dict(model.state_dict())
    wrapped = distribute(model, "cpu")
    wrapped(torch.tensor([distributed.rank()])).backward()
    (alone(torch.tensor([0, 1])) / 2).backward()
    assert model.table.weight.grad is not None
    assert model.table.weight.grad.is_sparse
    errors = []
    for own, whole in zip(model.parameters(), alone.parameters(), strict=True):
        assert own.grad is not None
        assert whole.grad is not None
        errors.append(float((own.grad.to_dense() - whole.grad.to_dense()).abs().max()))
    return errors, model.table.weight.detach()


def test_distribute_complex_and_sparse_parameters() -> None:
    """Complex parameters and sparse embeddings are distributed, and get the ranks' gradient."""
    (errors, table), (other_errors, other_table) = run_ranks(train_odd_parameters)
    assert max(errors + other_errors) < 1e-6
    assert table.equal(other_table)


def train_channels_last() -> list[bool]:
    last: Any = {"memory_format": torch.channels_last}
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1, stride=2)).to(**last)
    images = torch.randn(2, 3, 9, 9).contiguous(**last)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapped = distribute(model, "cpu")
        wrapped(images).sum().backward()
    return [p.grad is not None and p.grad.stride() == p.stride() for p in model.parameters()]


def test_distribute_channels_last() -> None:
    """Gradients of a model that is channels last have its strides, and DDP warns of none."""
    assert run_ranks(train_channels_last, world_size=1) == [[True] * 4]


def settle_as_on_a_gpu() -> list[bool]:
    model = DistributedDataParallel(nn.Linear(4, 3))
    model.device_ids = [0]  # DDP moves its inputs to this device
    _settled(model)
    model(torch.ones(2, 4)).sum().backward()
    return [parameter.grad is not None for parameter in model.parameters()]


def test_distribute_with_a_device_of_its_own() -> None:
    """DDP that moves its inputs, as it does on GPUs, gets its order of buckets too."""
    assert run_ranks(settle_as_on_a_gpu, world_size=1) == [[True, True]]


def train_with_batch_norm() -> bool:
    device = torch.device("cuda", distributed.local_rank())
    model = distribute(small(), device)
    model(torch.randn(8, 4, device=device)).sum().backward()
    bare = unwrap(model)
    assert isinstance(bare, nn.Sequential)
    return isinstance(bare[1], nn.SyncBatchNorm)


@pytest.mark.gpu
def test_batch_norm_is_synchronised_on_gpus() -> None:
    """On GPUs in a group, batch norm becomes synchronised batch norm."""
    assert all(run_ranks(train_with_batch_norm, world_size=torch.cuda.device_count(), gpus=True))
