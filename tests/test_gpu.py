"""What only a GPU shows, of several rooms together; `make gpu` runs all tests marked `gpu`."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import re
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from ranks import run_ranks
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from batteries import (
    EMA,
    AverageMeter,
    CheckpointManager,
    accumulate,
    distribute,
    distributed,
    isolated_rng,
    load_checkpoint,
    make_checkpoint,
    save_checkpoint,
    seed_all,
    to_device,
    unwrap,
)
from batteries.checkpoint import read_checkpoint
from batteries.data import DataLoader
from batteries.training import StepPolicy, Throughput


@contextlib.contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def network() -> nn.Sequential:
    seed_all(0)
    return nn.Sequential(
        nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 4)
    )


def loader(prefetch_to: Any = None, **options: Any) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 8, generator=generator)
    data = TensorDataset(x, x[:, :4].argmax(1))
    return DataLoader(data, 5, shuffle=True, seed=2, prefetch_to=prefetch_to, **options)


def weights_of(model: nn.Module) -> Tensor:
    values: list[Any] = [p.detach() for p in unwrap(model).parameters()]
    whole = [v.full_tensor() if hasattr(v, "full_tensor") else v for v in values]
    return torch.cat([value.float().cpu().flatten() for value in whole])


def trained(
    model: nn.Module,
    device: Any,
    *,
    dtype: torch.dtype = torch.float32,
    scaler: Any = None,
    prefetch_to: Any = None,
    steps: int = 3,
) -> Tensor:
    """The weights after an epoch of windows that are clipped, as examples/lm has it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    policy = StepPolicy("skip", scaler=scaler)
    device_type = torch.device(device).type
    for batch, window in accumulate(loader(prefetch_to), model, steps, scaler=scaler):
        x, y = to_device(batch, device)
        with window:
            with torch.autocast(device_type, dtype, enabled=dtype != torch.float32):
                output = model(x)
            loss = F.cross_entropy(output.float(), y)
            window.backward(loss)
        if window.closed:
            norm = window.clip(optimizer, 0.5)
            if policy.accepts(norm, loss):
                window.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
    return weights_of(model)


def loss_of_all(model: nn.Module, device: Any) -> float:
    x, y = to_device(loader().dataset[:], device)
    return F.cross_entropy(model(x), y).item()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPUs")
def test_gpu_tests_are_collected(request: pytest.FixtureRequest) -> None:
    """Where there is no GPU, all tests that need one are collected, and skipped with the reason."""
    marked = [item for item in request.session.items if item.get_closest_marker("gpu")]
    own = {item.name.partition("[")[0] for item in marked if item.path == Path(__file__)}
    assert {"test_a_step_does_not_wait", "test_ranks_on_gpus", "test_a_compiled_model"} <= own
    for item in marked:
        reasons = [mark.kwargs["reason"] for mark in item.iter_markers("skip")]
        assert reasons == ["needs a GPU that PyTorch can use"]


def modules_for_gpus() -> int:
    """Import the modules that have tests for GPUs, where only some packages are installed."""
    tests = Path(__file__).parent
    guide = (tests.parent / "CONTRIBUTING.md").read_text()
    asked = re.findall(r"[\w-]+", guide.partition("that Python must have ")[2].partition(".\n")[0])
    known = re.findall(r'"([\w-]+)>=', (tests.parent / "pyproject.toml").read_text())
    others = {*known, "attrs", "pandas", "sybil", "torchmetrics", "websockets"}
    others -= {*asked, "numpy", "scipy"}  # which torch and scikit-learn use

    class Few(PathFinder):
        @classmethod
        def find_spec(cls, name: str, *where: Any) -> Any:
            return None if name.partition(".")[0] in others else super().find_spec(name, *where)

        @classmethod
        def find_distributions(cls, *where: Any) -> Any:
            return (d for d in super().find_distributions(*where) if d.name not in others)

    sys.meta_path[:] = [Few if finder is PathFinder else finder for finder in sys.meta_path]
    for name in [*sys.modules]:
        if name.partition(".")[0] in others or (tests / f"{name}.py").exists():
            del sys.modules[name]
    names = [path.stem for path in tests.glob("test_*.py") if "mark.gpu" in path.read_text()]
    return len([importlib.import_module(name) for name in names])


def test_packages_for_gpus() -> None:
    """What `make gpu` collects needs no packages but those that CONTRIBUTING.md names."""
    [count] = run_ranks(modules_for_gpus, world_size=1, group=False)
    assert isinstance(count, int), count
    assert count > 10


def test_the_loop_of_these_tests() -> None:
    """The loop that the tests below compare learns, and it ends alike with `prefetch_to`."""
    model = network()
    once = trained(model, "cpu")
    assert trained(network(), "cpu", prefetch_to="cpu").equal(once)
    mixed = trained(network(), "cpu", dtype=torch.bfloat16)
    torch.testing.assert_close(mixed, once, atol=3e-2, rtol=0)
    for _ in range(14):
        trained(model, "cpu")
    assert loss_of_all(model, "cpu") < 0.9


# ---------------------------------------------------------------- one GPU


@pytest.mark.gpu
def test_a_step_does_not_wait() -> None:
    """From the batch to the step nothing waits for the GPU, after a first epoch."""
    model = network().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ema, meter, throughput = EMA(model, 0.9), AverageMeter(), Throughput()
    data = loader(prefetch_to=0)

    def epoch() -> None:
        for batch, window in throughput.watch(accumulate(data, model, 3)):
            x, y = to_device(batch, 0)
            with window:
                loss = F.cross_entropy(model(x), y)
                window.backward(loss)
            meter.update(loss, len(x))
            throughput.update(len(x))
            if window.closed:
                window.clip(optimizer, 1.0)
                window.step(optimizer)
                optimizer.zero_grad(set_to_none=True)
                ema.update(model)

    epoch()
    with waiting_is_an_error():
        epoch()
    assert 0 < meter.average < 2


@pytest.mark.gpu
def test_where_a_step_waits() -> None:
    """The decision of a policy waits for the norm, by design, and so does one of a scaler."""
    policy, norm = StepPolicy("skip"), torch.ones((), device="cuda")
    policy.accepts(norm)
    with pytest.raises(RuntimeError, match="synchroniz"), waiting_is_an_error():
        policy.accepts(norm)


@pytest.mark.gpu
def test_prefetch_changes_no_bits() -> None:
    """Training ends with the same weights, with `prefetch_to` and without it."""
    expected = trained(network().cuda(), "cuda:0")
    assert trained(network().cuda(), "cuda:0", prefetch_to=0).equal(expected)


@pytest.mark.gpu
def test_windows_have_the_large_batch_on_a_gpu() -> None:
    """On a GPU training ends where it ends on the CPU, whole or in mixed precision."""
    expected = trained(network(), "cpu")
    torch.testing.assert_close(trained(network().cuda(), "cuda"), expected, atol=1e-4, rtol=1e-3)
    mixed = trained(network().cuda(), "cuda", dtype=torch.bfloat16)
    torch.testing.assert_close(mixed, expected, atol=3e-2, rtol=0)


@pytest.mark.gpu
def test_a_scaler_in_a_loop() -> None:
    """In float16 with a scaler it ends there, too, though the first steps overflow."""
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    model = network().cuda()
    for _ in range(20):  # too large a scale is halved, step by step
        trained(model, "cuda", dtype=torch.float16, scaler=scaler)
    assert scaler.get_scale() < 2.0**24
    assert loss_of_all(model, 0) < 0.9
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    whole = trained(network(), "cpu")
    scaled = trained(network().cuda(), "cuda", dtype=torch.float16, scaler=scaler)
    torch.testing.assert_close(scaled, whole, atol=1e-2, rtol=0)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:the loss is nan")
def test_a_policy_and_a_scaler() -> None:
    """A loss that is not finite is skipped by the policy, an overflow is left to the scaler."""
    model = network().cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    policy = StepPolicy("skip", scaler=scaler)
    before = weights_of(model)
    stepped = []
    for factor in (float("nan"), 1e38, 1.0):
        x = torch.ones(4, 8, device="cuda")
        for batch, window in accumulate([x], model, scaler=scaler):
            with window:
                loss = (model(batch) * factor).mean()
                window.backward(loss)
            norm = window.clip(optimizer, 1.0)
            stepped.append(policy.accepts(norm, loss) and window.step(optimizer))
            optimizer.zero_grad()
            if not stepped[-1]:
                assert weights_of(model).equal(before)
    assert stepped == [False, False, True]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_a_compiled_model() -> None:
    """A model compiled for the GPU trains, is saved and loaded by the names of the plain one."""
    pytest.importorskip("triton", reason="torch.compile needs triton for a GPU")
    plain = trained(network().cuda(), "cuda")
    model: Any = torch.compile(network().cuda())
    torch.testing.assert_close(trained(model, "cuda"), plain, atol=1e-4, rtol=1e-3)
    save_checkpoint(make_checkpoint("train", 1, model, ema=EMA(model)), "a.pth")
    other = network()
    load_checkpoint("a.pth", other)
    assert weights_of(other).equal(weights_of(model))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:checkpoints are made faster")
def test_background_saves_on_a_gpu() -> None:
    """A save holds the weights and optimizer of its moment, in pinned memory, without waiting."""
    model = network().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    moments = []
    with CheckpointManager("logs", background=True, save_n_best=5) as checkpoints:
        for epoch in range(1, 5):
            model(torch.ones(4, 8, device="cuda")).square().mean().backward()
            optimizer.step()
            moments.append(weights_of(model))
            checkpoint = make_checkpoint("train", epoch, model, optimizer)
            checkpoints.process(-epoch, epoch, checkpoint)
    for epoch, moment in enumerate(moments, 1):
        other = network()
        load_checkpoint(f"logs/exp_{epoch}.pth", other)
        assert weights_of(other).equal(moment)


def draw_after_a_block() -> list[Tensor]:
    seed_all(3)
    with isolated_rng():
        torch.rand(5, device="cuda")
    drawn = torch.rand(5, device="cuda")
    seed_all(3)
    return [drawn.cpu(), torch.rand(5, device="cuda").cpu()]


@pytest.mark.gpu
def test_a_block_that_uses_the_gpu_first() -> None:
    """After `isolated_rng` a GPU draws as if the block, its first use, had drawn nothing."""
    [(drawn, expected)] = run_ranks(draw_after_a_block, world_size=1, group=False, gpus=True)
    assert drawn.equal(expected)


# ---------------------------------------------------------------- as many ranks as there are GPUs


def on_all_gpus(function: Any, *args: Any) -> list[Any]:
    results = run_ranks(function, *args, world_size=torch.cuda.device_count(), gpus=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def train_together(kind: str) -> Tensor:
    device = torch.device("cuda", distributed.local_rank())
    model: nn.Module = network().to(device)
    if kind == "ddp":
        model = distribute(model, device)
    else:
        from torch.distributed.fsdp import fully_shard

        for part in (model[0], model[2], model):  # type: ignore[index]
            fully_shard(part)
    return trained(model, device, prefetch_to=device)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_ranks_on_gpus(kind: str) -> None:
    """With NCCL, DDP and FSDP2 end alike on all ranks; on one, where training on the CPU ends."""
    results = on_all_gpus(train_together, kind)
    assert all(weights.equal(results[0]) for weights in results)
    if len(results) == 1:
        expected = trained(network(), "cpu")
        torch.testing.assert_close(results[0], expected, atol=1e-4, rtol=1e-3)


def exchange_on_a_mesh() -> bool:
    from torch.distributed.device_mesh import init_device_mesh

    size = distributed.world_size()
    rows = 1 if size % 2 else 2
    mesh = init_device_mesh("cuda", (rows, size // rows), mesh_dim_names=("dp", "shard"))
    for name, device, length in itertools.product(("dp", "shard"), ("cuda", "cpu"), (3, 5000)):
        ranks = mesh[name].mesh.tolist()
        mine = torch.full((length,), float(distributed.rank()), device=device)
        gathered = distributed.all_gather(mine, group=(mesh, name))
        assert [part[-1].item() for part in gathered] == ranks
        assert distributed.all_reduce(mine, group=(mesh, name))[-1] == sum(ranks)
    return True


@pytest.mark.gpu
def test_a_mesh_on_gpus() -> None:
    """In each dimension of a mesh, tensors of either device arrive whole."""
    assert all(on_all_gpus(exchange_on_a_mesh))


def save_shards(directory: str) -> tuple[Tensor, Tensor, Tensor]:
    from torch.distributed.fsdp import fully_shard

    device = torch.device("cuda", distributed.local_rank())
    model: Any = fully_shard(network().to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    ema = EMA(model, 0.5)
    model(torch.ones(4, 8, device=device)).square().mean().backward()
    optimizer.step()
    ema.update(model)
    manager = CheckpointManager(directory, sharded=True)
    manager.process(0.5, 1, make_checkpoint("train", 1, model, optimizer, ema=ema))
    other: Any = fully_shard(nn.Sequential(*network()).to(device))
    average = EMA(other, 0.5)
    load_checkpoint(manager.last_path, other, ema=average)
    whole = read_checkpoint(manager.last_path)["model_state_dict"]
    stored = torch.cat([value.float().flatten() for value in whole.values()])
    assert weights_of(average.module).equal(weights_of(ema.module))
    return weights_of(model), weights_of(other), stored


@pytest.mark.gpu
def test_shards_on_gpus(tmp_path: Path) -> None:
    """Weights and averages that are divided among GPUs are saved, loaded and read whole."""
    for model, other, stored in on_all_gpus(save_shards, str(tmp_path)):
        assert other.equal(model)
        assert stored.equal(model)
