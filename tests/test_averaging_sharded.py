"""EMA and SWA of models that fully_shard has divided, beside the same models as wholes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from sweeps import sweep
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from batteries import (
    EMA,
    SWA,
    CheckpointManager,
    average_checkpoints,
    check_in_sync,
    distributed,
    load_checkpoint,
    make_checkpoint,
    save_checkpoint,
    share_buffers,
    unwrap,
    update_bn,
)
from batteries._modules import own_part
from batteries.checkpoint import consolidate

Kind = Callable[[nn.Module], EMA | SWA]


class Network(nn.Module):
    """Sizes that three ranks cannot divide, a layer smaller than that, tied weights, buffers."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 5)
        self.body = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Linear(5, 5))
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.table.weight
        self.scale = nn.Parameter(torch.ones(1))
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.table(x)) * self.scale) + self.frozen.mean()  # type: ignore[no-any-return]


def divided(model: Network) -> Network:
    fully_shard(model.body[0])
    fully_shard(model.body)
    return fully_shard(model)  # type: ignore[return-value]


@torch.no_grad()
def change(tensors: list[Tensor], step: int) -> None:
    """As an optimizer does; the same bits, whether a tensor is whole or not."""
    for tensor in tensors:
        if tensor.requires_grad:
            tensor.mul_(0.75).add_(0.125 * step)
        elif not isinstance(tensor, nn.Parameter):
            tensor.add_(step)


def tensors_of(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def whole(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    return state.full_tensor() if hasattr(state, "full_tensor") else state


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(whole(found), whole(expected), rtol=0, atol=0)


def assert_same_parts(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """That this rank has its rows, bit for bit: quicker than to gather those of all ranks."""
    assert found.keys() == expected.keys()
    for key, value in found.items():
        if isinstance(value, dict):
            assert_same_parts(value, expected[key])
        elif isinstance(value, DTensor):
            assert value.shape == expected[key].shape
            rows = expected[key].tensor_split(rows_of_ranks(len(expected[key])))
            assert_same(value.to_local(), rows[distributed.rank()])
        else:
            assert_same(value, expected[key])


def rows_of_ranks(length: int) -> list[int]:
    """Where the rows of the next rank begin, as `torch.chunk` divides them."""
    each = -(-length // distributed.world_size())
    return [min(each * rank, length) for rank in range(1, distributed.world_size())]


KINDS: dict[str, Kind] = {
    "ema": lambda model: EMA(model, 0.5),
    "warmup": lambda model: EMA(model, 0.9, warmup=True, update_after=2, update_every=2),
    "averaged buffers": lambda model: EMA(model, 0.5, buffers="average"),
    "swa": SWA,
}


def average_beside_whole(dtype: torch.dtype) -> None:
    """Each kind of average, made before and after sharding, beside that of a whole model."""
    tokens = torch.arange(6) % 7
    plain, model = Network(dtype), Network(dtype)
    pairs = [(kind(plain), kind(model)) for kind in KINDS.values()]
    model = divided(model)
    pairs += [(kind(plain), kind(model)) for kind in KINDS.values()]
    own = tensors_of(model)
    for step in range(1, 6):
        change(tensors_of(plain), step)
        change(own, step)
        for expected, average in pairs:
            expected.update(plain)
            average.update(model)
            assert_same_parts(average.state_dict(), expected.state_dict())
        if step == 3:  # behind a forward pass the outermost module holds whole weights
            model.eval()(tokens)
    before = copy.deepcopy(whole(model.state_dict()))
    for expected, average in pairs:
        assert_same(average.state_dict(), expected.state_dict())
        output = expected.module(tokens)
        torch.testing.assert_close(average.module(tokens), output)
        with average.swapped(model):
            for name, tensor in model.named_parameters():
                assert_same(tensor, expected.module.get_parameter(name))
            torch.testing.assert_close(model.eval()(tokens), output)
        assert_same(model.train().state_dict(), before)
    kept = sum(own_part(t).numel() for t in pairs[0][1].module.parameters())
    assert kept <= sum(p.numel() for p in plain.parameters()) / distributed.world_size() + 20


@pytest.mark.parametrize("world_size", [1, sweep(2), 3])
def test_averages_of_shards(world_size: int) -> None:
    """An average of shards has the bits of the whole model's, also made before, or in 16 bits."""

    run_ranks_ok(both_dtypes, world_size=world_size)


def both_dtypes() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        average_beside_whole(dtype)


def run_ranks_ok(function: Callable[..., Any], *args: Any, world_size: int = 2) -> list[Any]:
    results = run_ranks(function, *args, world_size=world_size)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def trained(logdir: str, steps: int) -> dict[str, Any]:
    """Goes on after the last checkpoint of a sharded model and its averages."""
    model = divided(Network(torch.bfloat16))
    averages: dict[str, Any] = {"ema": EMA(model, 0.5), "swa": SWA(model)}
    manager = CheckpointManager(logdir, sharded=True)
    if manager.last_path.exists():
        load_checkpoint(manager.last_path, model, **averages)
    for _ in range(steps):
        change(tensors_of(model), 2)
        for average in averages.values():
            average.update(model)
    manager.process(0.5, steps, make_checkpoint("train", steps, model, **averages))
    fresh, files = divided(Network(torch.bfloat16)), [manager.last_path] * 2
    load_checkpoint(manager.last_path, fresh, key="ema")
    assert_same(fresh.state_dict(), averages["ema"].state_dict()["module"])
    expected = whole(dict(model.state_dict()))
    if distributed.is_main():  # alone
        assert_same(dict(average_checkpoints(files)), expected)
    return whole({name: average.state_dict() for name, average in averages.items()})  # type: ignore[no-any-return]


def test_saved_averages(tmp_path: Path) -> None:
    """They go on with other ranks, and load into plain ones; tied weights are stored once."""
    run_ranks_ok(trained, str(tmp_path), 2, world_size=3)
    [found, _] = run_ranks_ok(trained, str(tmp_path), 3)
    plain = Network(torch.bfloat16)
    ema, swa = EMA(plain, 0.5), SWA(plain)
    for _ in range(5):
        change(tensors_of(plain), 2)
        ema.update(plain)
        swa.update(plain)
    assert_same(found, {"ema": ema.state_dict(), "swa": swa.state_dict()})
    consolidate(tmp_path / "last.dcp", "last.pth")
    for path in (tmp_path / "last.dcp", Path("last.pth")):
        other = EMA(Network(torch.bfloat16), 0.5)
        checkpoint = load_checkpoint(path, ema=other)
        assert_same(other.state_dict(), ema.state_dict())
        module = checkpoint["ema_state_dict"]["module"]
        assert module["head.weight"] is module["table.weight"]


def undone_after(trouble: Callable[[Any], object]) -> None:
    model = divided(Network())
    ema, tokens = EMA(model, 0.5), torch.arange(6)
    change(tensors_of(model), 1)
    ema.update(model)
    before, parameters = copy.deepcopy(whole(model.state_dict())), [*model.parameters()]
    with pytest.raises(RuntimeError), ema.swapped(model):  # noqa: PT012
        model.eval()(tokens)
        trouble(model)
        raise RuntimeError
    twin = Network().eval()
    twin.load_state_dict(before)
    torch.testing.assert_close(model.eval()(tokens), twin(tokens))
    assert_same(model.state_dict(), before)
    assert all(map(lambda a, b: a is b, model.parameters(), parameters))
    ema.update(model)


def fail_inside(model: Network) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError

    hook = model.head.register_forward_pre_hook(fail)
    try:
        model(torch.arange(6))
    finally:
        hook.remove()


def troubles() -> None:
    undone_after(lambda _: None)
    undone_after(fail_inside)
    model = divided(Network())
    ema = EMA(model, 0.5)
    before = whole(model.state_dict())
    change(tensors_of(ema.module), 1)
    with pytest.raises(RuntimeError, match="inside of"), ema.swapped(model), ema.swapped(model):
        pass
    with pytest.raises(RuntimeError, match="size"), ema.swapped(model):
        model.get_parameter("body.0.weight")._local_tensor = torch.zeros(7)  # type: ignore[attr-defined]
    for name, tensor in model.state_dict().items():
        if name != "body.0.weight":
            assert_same(tensor, before[name])


def rest_of_it() -> dict[str, Any]:
    """All that takes a model takes one of FSDP2."""
    model, rank = divided(Network()), distributed.rank()
    assert unwrap(model) is unwrap(model, keep_compile=True) is model
    model.body[1].running_mean.fill_(rank)  # type: ignore[operator]
    share_buffers(model)
    check_in_sync(model)
    swa = SWA(model)
    batches = [torch.arange(size) % 7 for size in ((4, 6, 2), (4,))[rank]]
    update_bn(swa.module, batches)
    with pytest.raises(ValueError, match="loader of rank 1 has no batches"):
        update_bn(model, batches[: 1 - rank])
    with pytest.raises(ZeroDivisionError):
        update_bn(model, (1 // (rank - 1) for _ in batches))
    with pytest.raises(ValueError, match="is sharded in another way in the model"):
        swa.update(Network())
    check_in_sync(swa.module)
    for run in (model, swa.module):
        for alone in (distributed.rank_zero_only, distributed.rank_zero_only(share=True)):
            if distributed.is_main() or alone is not distributed.rank_zero_only:
                with pytest.raises(RuntimeError, match="on some ranks alone"):
                    alone(run)(batches[0])
    with pytest.raises(TypeError, match=r"CheckpointManager\(\.\.\., sharded=True\)"):
        save_checkpoint(make_checkpoint("train", 1, model), "a.pth")
    return whole(swa.state_dict()["module"])  # type: ignore[no-any-return]


def test_swapped() -> None:
    """After any error in the block, or in undoing it, all else is what it was, and is saved."""
    run_ranks_ok(troubles)


def test_what_takes_a_model() -> None:
    """Batch norm's statistics are those of the whole model, also if one rank has fewer batches."""
    plain = Network()
    update_bn(plain, [torch.arange(size) % 7 for size in (4, 6, 2, 4)])
    for found in run_ranks_ok(rest_of_it):
        torch.testing.assert_close(found, dict(plain.state_dict()))
