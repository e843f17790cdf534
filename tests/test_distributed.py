from __future__ import annotations

import functools
import itertools
import math
import os
import pickle
import random
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.multiprocessing.spawn import start_processes

from batteries import (
    AverageMeter,
    Predictions,
    check_in_sync,
    distribute,
    distributed,
    rng_state,
    seed_all,
    set_rng_state,
    share_buffers,
    unwrap,
)
from batteries.distributed import _collectives, _joining, _launch, _messages
from batteries.distributed._agreement import Transfer, agree
from batteries.distributed._groups import ranks_of

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64]
OTHERS = [torch.bool, torch.uint8, torch.int8, torch.int64]


def gather_tensors() -> list[Tensor]:
    rank = distributed.rank()
    gathered = []
    for dtype in FLOATS + OTHERS:
        for shape in [(), (3,), (0, 4), (rank, 2), (2, rank + 1, 3)]:
            gathered += distributed.all_gather(torch.full(shape, rank, dtype=dtype))
    return gathered


def expected_tensors(world_size: int) -> list[Tensor]:
    return [
        torch.full(shape, rank, dtype=dtype)
        for dtype in FLOATS + OTHERS
        for shapes in zip(
            *[[(), (3,), (0, 4), (r, 2), (2, r + 1, 3)] for r in range(world_size)], strict=True
        )
        for rank, shape in enumerate(shapes)
    ]


@pytest.mark.parametrize("world_size", [2, 3])
def test_all_gather_of_tensors(world_size: int) -> None:
    """Equal, ragged and empty tensors of any dtype arrive whole, in the order of the ranks."""
    results = run_ranks(gather_tensors, world_size=world_size)
    for gathered in results:
        torch.testing.assert_close(gathered, expected_tensors(world_size), rtol=0, atol=0)


UNTYPED = [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn]


def untyped_values(rank: int) -> dict[str, Tensor]:
    own = torch.arange(48, dtype=torch.uint8) + rank
    values = {str(dtype): own.view(dtype).view(-1, 3)[1:, :2] for dtype in UNTYPED}
    return {**values, "empty": torch.zeros((0, 2), dtype=torch.uint16)}


def forms_of(values: dict[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    return {
        name: (value.dtype, value.shape, value.contiguous().view(torch.uint8).tolist())
        for name, value in values.items()
    }


def gather_values() -> list[dict[str, tuple[Any, ...]]]:
    return [*map(forms_of, distributed.all_gather(untyped_values(distributed.rank())))]


def test_values_with_tensors_that_torch_cannot_unpickle() -> None:
    """Inside of a value, too, tensors of any dtype arrive whole."""
    sent = [forms_of(untyped_values(rank)) for rank in range(2)]
    assert run_ranks(gather_values) == [sent, sent]


def states_of_two() -> tuple[bool, bool]:
    seed_all(42, rank=distributed.rank())
    states = distributed.all_gather(rng_state())
    numbers = distributed.all_gather(draw_all())
    set_rng_state(states[1 - distributed.rank()])
    return draw_all() == numbers[1 - distributed.rank()], numbers[0] != numbers[1]


def draw_all() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_states_of_generators_of_all_ranks() -> None:
    """Each rank can read the states of the generators of all ranks."""
    assert run_ranks(states_of_two) == [(True, True)] * 2


def gather_views() -> list[Tensor]:
    rank = distributed.rank()
    strided = torch.arange(12.0).reshape(3, 4).t()[::2] + rank
    conjugate = torch.tensor([1 + 2j]).conj()
    learned = torch.ones(2, requires_grad=True) * 2
    views = [strided, conjugate, learned]
    return [distributed.all_gather(view)[1] for view in views]


def test_all_gather_of_views() -> None:
    """Strided, conjugated and differentiable tensors arrive as their values."""
    strided, conjugate, learned = run_ranks(gather_views)[0]
    assert strided.equal(torch.arange(12.0).reshape(3, 4).t()[::2] + 1)
    assert conjugate.equal(torch.tensor([1 - 2j]))
    assert learned.equal(torch.tensor([2.0, 2.0]))
    assert not learned.requires_grad


def contrasted(model: nn.Module) -> Tensor:
    size, own = distributed.world_size(), distributed.rank()
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    one = nn.functional.normalize(model(x[own::size]))
    gathered = distributed.all_gather(one)
    gathered[own] = one
    features = torch.cat(gathered)
    similarities = features @ features.flip(0).t() / 0.5
    return nn.functional.cross_entropy(similarities, torch.arange(6)) * size


def contrastive_gradient() -> Tensor:
    torch.manual_seed(0)
    model = distribute(nn.Linear(3, 4), "cpu")
    contrasted(model).backward()  # type: ignore[no-untyped-call]
    gradient = next(unwrap(model).parameters()).grad
    assert gradient is not None
    return gradient


def test_a_loss_over_the_samples_of_all_ranks() -> None:
    """With this rank's own tensor in its place, the gradient is that of one process."""
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    features = nn.functional.normalize(model(torch.cat([x[::2], x[1::2]])))
    loss = nn.functional.cross_entropy(features @ features.flip(0).t() / 0.5, torch.arange(6))
    loss.backward()  # type: ignore[no-untyped-call]
    assert model.weight.grad is not None
    for gradient in run_ranks(contrastive_gradient):
        torch.testing.assert_close(gradient, model.weight.grad)


def gather_mixed() -> list[object]:
    mine: list[object] = [{"rank": 0, "name": "é"}, torch.ones(2), None]
    return distributed.all_gather(mine[distributed.rank()])


def test_all_gather_of_anything() -> None:
    """Any picklable data is gathered, of a different kind on each rank if need be."""
    for first, second, third in run_ranks(gather_mixed, world_size=3):
        assert first == {"rank": 0, "name": "é"}
        assert second.equal(torch.ones(2))
        assert third is None


def gather_a_function() -> None:
    distributed.all_gather(lambda: 1) if distributed.rank() == 1 else distributed.all_gather(1)


def test_all_gather_of_what_cannot_travel() -> None:
    """Data that cannot be pickled is an error on every rank, not a hang."""
    for error in run_ranks(gather_a_function):
        assert isinstance(error, AttributeError | pickle.PicklingError)
        assert "raised on rank 1" in str(error.__cause__) or "Can't " in str(error)


def broadcast_from_one() -> tuple[object, Tensor, object]:
    rank = distributed.rank()
    text = distributed.broadcast(f"from {rank}", src=1)
    tensor = distributed.broadcast(torch.full((rank + 1, 2), rank), src=1)
    nothing = distributed.broadcast(torch.empty(0) if rank == 1 else None, src=1)
    with pytest.raises(ValueError, match="src is 2; expected a rank of the group, 0 to 1"):
        distributed.broadcast(text, src=2)
    return text, tensor, nothing


def test_broadcast() -> None:
    """Every rank gets the value of the source, whatever it passed itself."""
    for text, tensor, nothing in run_ranks(broadcast_from_one):
        assert text == "from 1"
        assert tensor.equal(torch.full((2, 2), 1))
        assert nothing.numel() == 0


@pytest.mark.parametrize("src", ["0", None, True, 0.5])
def test_a_source_that_is_no_number(src: Any) -> None:
    """A source that is no whole number is named, also if it would compare as one."""
    with pytest.raises(TypeError, match=f"src is {src!r}; expected a whole number"):
        distributed.broadcast(1, src)


def reduce_all() -> dict[str, object]:
    value = distributed.rank() + 2
    numbers = {op: distributed.all_reduce(value, op) for op in _collectives._REDUCTIONS}
    tensor = torch.tensor([1.0, value])
    return {
        **numbers,
        "float": distributed.all_reduce(value / 10),
        "tensor": distributed.all_reduce(tensor, "mean"),
        "untouched": tensor,
        "flags": distributed.all_reduce(torch.tensor([True, value == 2])),
        "ints": distributed.all_reduce(torch.tensor([2**53 + value]), "max"),
    }


def test_all_reduce() -> None:
    """Sum, mean, min, max and product are those of the values of all ranks."""
    for result in run_ranks(reduce_all, world_size=3):
        assert (result["sum"], result["mean"], result["min"]) == (9, 3.0, 2)
        assert (result["max"], result["product"]) == (4, 24)
        assert result["float"] == pytest.approx(0.9, rel=1e-15)
        assert result["tensor"].equal(torch.tensor([1.0, 3.0]))
        assert result["untouched"][0] == 1
        assert result["flags"].equal(torch.tensor([3, 1]))
        assert result["ints"].item() == 2**53 + 4


def reduce_mixed() -> list[float]:
    rank = distributed.rank()
    mixed = [0, 1.5][rank]
    odd = [1.0, float("nan")]
    return [
        *(distributed.all_reduce(mixed, op) for op in _collectives._REDUCTIONS),
        distributed.all_reduce(np.float32(0.5)),
        distributed.all_reduce(2**70),
        distributed.all_reduce(odd[rank], "max"),
        distributed.all_reduce(odd[1 - rank], "min"),
        distributed.all_reduce(torch.tensor(odd[rank]), "max").item(),
        distributed.all_reduce(torch.tensor(odd[1 - rank]), "min").item(),
    ]


def test_all_reduce_of_mixed_numbers() -> None:
    """An int on one rank and a float on another reduce as numbers; NaN wins whoever has it."""
    for result in run_ranks(reduce_mixed):
        assert result[:7] == [1.5, 0.75, 0, 1.5, 0, 1.0, 2**71]
        assert all(math.isnan(number) for number in result[7:])


def test_all_reduce_of_an_array() -> None:
    """An array of several numbers is refused: only tensors are reduced by element."""
    one: Any = np.array(2)
    assert distributed.all_reduce(one) == 2
    row = distributed.all_reduce(np.array([2]))  # type: ignore[call-overload]
    assert (row, type(row)) == (2, int)
    several: Any = np.array([1, 2])
    with pytest.raises(TypeError, match=r"got array\(\[1, 2\]\); expected a number or a tensor"):
        distributed.all_reduce(several)
    text: Any = np.array(["a"])
    with pytest.raises(TypeError, match=r"got array\(\['a'\].*; expected a number or a tensor"):
        distributed.all_reduce(text)


def reduce_large(dtype: torch.dtype) -> list[Tensor]:
    most = torch.finfo if dtype.is_floating_point else torch.iinfo
    value = torch.full((2,), int(most(dtype).max), dtype=torch.float64).to(dtype)
    return [distributed.all_reduce(value, op) for op in ("sum", "mean", "max")]


@pytest.mark.parametrize("name", ["uint8", "int16", "int32", "uint16", "float16"])
def test_all_reduce_of_large_numbers(name: str) -> None:
    """Sums of small types do not wrap around, as in `torch.sum`, and means do not overflow."""
    dtype = getattr(torch, name)
    [alone] = run_ranks(reduce_large, dtype, world_size=1)
    for total, mean, most in run_ranks(reduce_large, dtype):
        assert total.equal((2 * most.double()).to(total.dtype))  # infinite in float16
        assert mean.double().equal(most.double())
        assert [total.dtype, mean.dtype, most.dtype] == [each.dtype for each in alone]


def reduce_a_view() -> Tensor:
    view = torch.arange(6.0).reshape(2, 3).t()
    return distributed.all_reduce(view)


def test_all_reduce_of_views() -> None:
    """A tensor that is not contiguous is reduced by its values."""
    for result in run_ranks(reduce_a_view):
        assert result.equal(2 * torch.arange(6.0).reshape(2, 3).t())


def wait_at_the_barrier(path: str) -> bool:
    if distributed.rank() == 1:
        time.sleep(0.5)  # rank 0 has every chance to run ahead
        Path(path).touch()
    distributed.barrier()
    return Path(path).exists()


def test_barrier(tmp_path: Path) -> None:
    """No rank passes a barrier before the last one has reached it."""
    assert run_ranks(wait_at_the_barrier, str(tmp_path / "reached")) == [True, True]


def stay_away(path: str) -> str:
    with distributed.setup(timeout=timedelta(seconds=1)):
        if distributed.rank() == 0:
            try:
                distributed.barrier()
            except Exception as error:
                Path(path).touch()
                return str(error)
        while not Path(path).exists():
            time.sleep(0.01)
    return ""


def test_timeout(tmp_path: Path) -> None:
    """A rank waits for the others as long as `setup` was told, and no longer."""
    (error, _) = run_ranks(stay_away, str(tmp_path / "over"), group=False)
    assert "rank 1 did not come" in error


def collective_inside(kind: str) -> object:
    @distributed.rank_zero_only(share=True)
    def shared() -> object:
        return distributed.broadcast("inner")

    if kind == "shared":
        return shared()
    with distributed.rank_zero_first():
        return distributed.broadcast("inner")


@pytest.mark.parametrize("kind", ["shared", "first"])
def test_collectives_where_ranks_are_apart(kind: str) -> None:
    """A collective inside a block that the ranks do not share is an error on each, not a hang."""
    for error in run_ranks(collective_inside, kind):
        assert isinstance(error, RuntimeError)
        assert "broadcast was called inside a block that the ranks do not execute" in str(error)


class FormattingError(Exception):
    """Comes back from a pickle with another text."""

    def __init__(self, code: object) -> None:
        super().__init__(f"code {code}")


def raise_formatted() -> None:
    with distributed.rank_zero_first():
        if distributed.rank() == 0:
            raise FormattingError(3)


def test_errors_keep_their_text() -> None:
    """An exception whose text a pickle would change arrives with the text that it had."""
    assert "FormattingError: code 3\n" in str(run_ranks(raise_formatted)[1])


def gather_unreadable() -> None:
    distributed.all_gather(torch.ones(2, device="meta" if distributed.rank() == 1 else "cpu"))


def test_tensors_without_data() -> None:
    """A tensor that cannot be read is an error on every rank."""
    for error in run_ranks(gather_unreadable):
        assert isinstance(error, NotImplementedError | RuntimeError)
        assert "meta" in str(error)


def size_of_a_small_view() -> int:
    _, payload = _messages.encode({"x": torch.zeros(1_000_000)[:3]})
    return payload.numel()


def test_views_travel_alone() -> None:
    """Of a view inside other data the view is sent, not all that it is part of."""
    assert size_of_a_small_view() < 2000


def test_alone_is_like_a_group_of_one() -> None:
    """Without a process group, each helper returns what a group of one returns."""
    assert distributed.world_size() == 1
    assert distributed.rank() == distributed.local_rank() == 0
    assert distributed.is_main()
    distributed.barrier()
    assert distributed.all_gather("a") == ["a"]
    assert distributed.broadcast("a") == "a"
    assert distributed.all_reduce(2, "mean") == 2.0
    assert distributed.all_reduce(torch.tensor([True])).equal(torch.tensor([1]))
    assert not dist.is_initialized()


def test_all_reduce_of_an_unknown_operation() -> None:
    """An unknown operation is refused with the list of the known ones."""
    with pytest.raises(ValueError, match=r"op is 'avg'; .* sum, mean, min, max, product"):
        distributed.all_reduce(1, "avg")


def call_without_group(name: str) -> object:
    calls: dict[str, Callable[[], object]] = {
        "all_gather": lambda: distributed.all_gather(1),
        "all_reduce": lambda: distributed.all_reduce(1),
        "barrier": distributed.barrier,
        "broadcast": lambda: distributed.broadcast(1),
    }
    return calls[name]()


@pytest.mark.parametrize("name", ["all_gather", "all_reduce", "barrier", "broadcast"])
def test_forgotten_group(name: str) -> None:
    """A collective on several processes without a group is an error, not a private answer."""
    for error in run_ranks(call_without_group, name, group=False):
        assert isinstance(error, RuntimeError)
        assert f"{name} was called with 2 processes" in str(error)
        assert "setup()" in str(error)


class TwoArgumentsError(Exception):
    """Pickles, but cannot be unpickled."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


def raise_first(kind: str) -> None:
    with distributed.rank_zero_first():
        if distributed.rank() == 0:
            raise TwoArgumentsError("disk", "full") if kind == "odd" else ValueError("no data")


def raise_shared(kind: str) -> object:
    @distributed.rank_zero_only(share=True)
    def work() -> object:
        if kind == "odd":
            raise TwoArgumentsError("disk", "full")
        if kind == "unpicklable":
            return lambda: 1
        raise ValueError("no data")

    return work()


@pytest.mark.parametrize("function", [raise_first, raise_shared])
def test_error_on_rank_zero_reaches_all(function: object) -> None:
    """When rank 0 raises, every rank raises the same error, saying where it comes from."""
    errors = run_ranks(function, "plain", world_size=3)  # type: ignore[arg-type]
    for error in errors:
        assert isinstance(error, ValueError)
        assert str(error) == "no data"


@pytest.mark.parametrize("function", [raise_first, raise_shared])
def test_odd_error_on_rank_zero_reaches_all(function: object) -> None:
    """An exception that cannot travel arrives as its text."""
    errors = run_ranks(function, "odd")  # type: ignore[arg-type]
    assert "disk: full" in str(errors[1])
    assert "raised on rank 0" in str(errors[1])


def test_shared_result_that_cannot_travel() -> None:
    """A result that cannot be shared is an error on every rank."""
    for error in run_ranks(raise_shared, "unpicklable"):
        assert isinstance(error, AttributeError | pickle.PicklingError)


def make_one_after_another(directory: str) -> bool:
    with distributed.rank_zero_first():
        path = Path(directory) / "data"
        found = path.exists()
        if not found:
            path.touch()
    return found


def test_rank_zero_first(tmp_path: Path) -> None:
    """The other ranks enter the block after rank 0 has left it."""
    assert run_ranks(make_one_after_another, str(tmp_path), world_size=3) == [False, True, True]


def only_on_zero() -> tuple[object, object]:
    @distributed.rank_zero_only
    def private() -> int:
        return os.getpid()

    @distributed.rank_zero_only(share=True)
    def shared() -> int:
        return os.getpid()

    return private(), shared()


def test_rank_zero_only() -> None:
    """Rank 0 runs the function; the others get None, or its result where it is shared."""
    (pid, shared_pid), (nothing, received) = run_ranks(only_on_zero)
    assert pid == shared_pid == received
    assert nothing is None


def ranks_around_a_raising_body() -> tuple[bool, int]:
    with pytest.raises(ValueError, match="body"), distributed.setup():
        raise ValueError("body")
    return dist.is_initialized(), distributed.rank()


def test_setup_cleans_up() -> None:
    """The group is gone after a body that raises; the rank is still known."""
    assert run_ranks(ranks_around_a_raising_body, group=False) == [(False, 0), (False, 1)]


def error_of_leaving() -> None:
    destroy = dist.destroy_process_group

    def broken() -> None:
        destroy()
        raise RuntimeError("no way out")

    dist.destroy_process_group = broken  # type: ignore[assignment]
    with distributed.setup():
        raise KeyError("weight")


def test_an_error_of_leaving_hides_no_other() -> None:
    """If torch raises while it ends the group, the block's own error still leaves it."""
    [error] = run_ranks(error_of_leaving, world_size=1, group=False)
    assert isinstance(error, KeyError)


def set_up_twice() -> None:
    with distributed.setup():
        pass


def test_a_second_group() -> None:
    """`setup` in a program that has a process group says which call is too much."""
    [error] = run_ranks(set_up_twice, world_size=1)
    assert isinstance(error, RuntimeError)
    assert "already a process group: call setup() once" in str(error)


@pytest.mark.parametrize("timeout", [math.inf, 9e9, timedelta.max])
def test_a_timeout_that_torch_cannot_count(timeout: Any) -> None:
    """A timeout of centuries would overflow in torch, and each wait would end or hang."""
    with (
        pytest.raises(ValueError, match=r"timeout is .*; expected 10,000 days at most"),
        distributed.setup(timeout=timeout),
    ):
        pass


def test_setup_alone() -> None:
    """Started by hand there is no group, and a device all the same."""
    with distributed.setup() as device:
        assert not dist.is_initialized()
        torch.zeros(1, device=device)


def test_gloo_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With "gloo" the device is the CPU, also without a launcher on a machine with GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with distributed.setup("gloo") as device:
        assert device.type == "cpu"


def nccl_without_gpus() -> None:
    with distributed.setup("nccl"):
        pass


def test_more_processes_than_gpus() -> None:
    """Processes without a GPU each are told how many there are."""
    for error in run_ranks(nccl_without_gpus, group=False):
        assert isinstance(error, ValueError)
        assert "2 processes were started on this host" in str(error)
        assert "PyTorch can use 0 here: use gloo" in str(error)


def test_gpu_index() -> None:
    """Each local rank has its own GPU; a process that sees one takes that."""
    assert [_joining._gpu_index(i, 4, gpus=4) for i in range(4)] == [0, 1, 2, 3]
    assert _joining._gpu_index(3, 0, gpus=1) == 0
    with pytest.raises(ValueError, match=r"4 processes .* can use 2 here: start at most 2 \(torch"):
        _joining._gpu_index(0, 4, gpus=2)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def under_slurm(port: int) -> tuple[float, ...]:
    rank = os.environ["RANK"]
    for name in ["RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_USE_AGENT_STORE"]:
        del os.environ[name]
    os.environ |= {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_STEP_NUM_TASKS": "2"}
    os.environ |= {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "localhost",
        "MASTER_PORT": str(port),
    }
    del os.environ["MASTER_ADDR"]
    with distributed.setup():
        place = distributed.rank(), distributed.world_size(), distributed.local_rank()
        return *place, distributed.all_reduce(1)


def test_setup_under_slurm() -> None:
    """What srun puts in the environment is enough to make the group."""
    results = run_ranks(under_slurm, free_port(), group=False)
    assert results == [(0, 2, 0, 2), (1, 2, 1, 2)]


@pytest.mark.parametrize(
    ("nodes", "host"), [("gpu[07-09,12],other3", "gpu07"), ("a1,b2", "a1"), ("one", "one")]
)
def test_slurm_node_lists(nodes: str, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first host of Slurm's compressed list is where the ranks meet."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_STEP_NODELIST", nodes)
    monkeypatch.setenv("SLURM_JOB_ID", "123456")
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    launched = _launch.launched()
    assert launched is not None
    assert launched.init_method == f"tcp://{host}:23456"
    assert (distributed.rank(), distributed.local_rank(), distributed.world_size()) == (3, 1, 4)


LAUNCHED = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
SLURM = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "a1", "SLURM_JOB_ID": "7"}


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({**LAUNCHED, "RANK": ""}, "^RANK is empty in the environment, but other variables say"),
        ({**LAUNCHED, "LOCAL_RANK": ""}, "^LOCAL_RANK is empty"),
        (
            {**LAUNCHED, "WORLD_SIZE": "two"},
            "^WORLD_SIZE is 'two' in the environment; expected a n",
        ),
        ({"WORLD_SIZE": "2"}, "^RANK is missing"),
        ({**LAUNCHED, "RANK": "2"}, "^this is rank 2 of 2 in the environment"),
        (LAUNCHED, "^MASTER_ADDR is missing"),
        ({**LAUNCHED, "MASTER_ADDR": "a", "MASTER_PORT": "http"}, "^MASTER_PORT is 'http' in the"),
        ({"RANK": "1"}, "^WORLD_SIZE is missing"),
        ({**SLURM, "SLURM_PROCID": "0"}, "^SLURM_LOCALID is missing"),
        ({**SLURM, "SLURM_PROCID": "", "SLURM_LOCALID": "0"}, "^SLURM_PROCID is empty"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "^SLURM_STEP_NODELIST is missing"),
    ],
)
def test_half_of_a_launcher(
    env: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that is missing beside others, or is no number, is named."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "MASTER_"))] + [
        *LAUNCHED
    ]:
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=text), distributed.setup():
        pass


def set_up_in(_: int, path: str) -> None:
    try:
        with distributed.setup():
            Path(path).write_text("it went on")
    except ValueError as error:
        Path(path).write_text(str(error))


def spawn_without_variables(path: str) -> None:
    start_processes(set_up_in, (path,), nprocs=1, start_method="fork")  # type: ignore[no-untyped-call]


def test_spawned_without_variables(tmp_path: Path) -> None:
    """A process of `torch.multiprocessing.spawn` is told what it has to set before `setup`."""
    none = dict.fromkeys(["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"], "")
    path = str(tmp_path / "told")
    run_ranks(spawn_without_variables, path, world_size=1, group=False, env=none)
    assert "set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT" in Path(path).read_text()


def pass_sharded() -> list[str]:
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("dp",))
    tensor = distribute_tensor(torch.ones(4), mesh, [Shard(0)])
    model = nn.Linear(2, 2)
    model.register_buffer("mask", tensor)
    divided: Any = fully_shard(nn.Linear(2, 2))
    calls: list[Any] = [
        lambda: distributed.all_gather(tensor),
        lambda: distributed.all_gather({"inside": [tensor]}),
        lambda: distributed.broadcast(tensor),
        lambda: distributed.all_reduce(tensor),
        lambda: share_buffers(model),
        lambda: distribute(divided, "cpu"),
        lambda: Predictions(4).add(range(4), value=tensor),
    ]
    told = []
    for call in calls:
        with pytest.raises((TypeError, ValueError), match=r"DTensor") as raised:
            call()
        told.append(str(raised.value))
    assert distributed.all_gather(tensor.full_tensor().sum().item()) == [4, 4]  # all in step
    check_in_sync(divided)  # each has its part
    copies = nn.Module()
    copies.register_buffer("copy", distribute_tensor(torch.ones(2), mesh, [Replicate()]))
    check_in_sync(copies)
    copies.copy.to_local().fill_(distributed.rank())  # type: ignore[operator, union-attr]
    with pytest.raises(
        RuntimeError, match="copy differs between the ranks: it has another value on rank 1"
    ):
        check_in_sync(copies)
    return told


def test_sharded_tensors() -> None:
    """Where whole tensors are needed a DTensor is refused, on all ranks, with what to do."""
    first, second = run_ranks(pass_sharded)
    assert first == second
    assert all("full_tensor()" in text or "without distribute()" in text for text in first)


def unknown_local_rank() -> int:
    return distributed.local_rank()


def meter_of_each(state: dict[str, Any] | None) -> Any:
    meter = AverageMeter()
    if state is None:
        meter.update(float(distributed.rank()))
        return distributed.PerRank(meter).state_dict()
    distributed.PerRank(meter).load_state_dict(state)
    return meter.average


def test_state_of_each_rank() -> None:
    """Each rank gets its own state back; other numbers of ranks are told how many saved it."""
    states = run_ranks(meter_of_each, None)
    assert run_ranks(meter_of_each, states[1]) == [0.0, 1.0]
    with pytest.raises(
        ValueError, match="saved by 2 ranks, and there are 1: start as many ranks, or"
    ):
        meter_of_each(states[0])


def test_state_that_another_object_saved() -> None:
    """`PerRank` refuses an object without a state, and a state that was saved without `PerRank`."""
    part = distributed.PerRank(AverageMeter())
    with pytest.raises(KeyError, match=r"the state has no 'ranks'; expected what PerRank"):
        part.load_state_dict({"value": 0.5, "sum": 0.5, "counter": 1})
    with pytest.raises(TypeError, match="ranks is 2; expected what PerRank"):
        part.load_state_dict({"ranks": 2})
    with pytest.raises(TypeError, match="part is 3; expected an object with state_dict"):
        distributed.PerRank(3)


def test_local_rank_that_nobody_said() -> None:
    """With several processes and no LOCAL_RANK the answer is an error, not a guess."""
    for error in run_ranks(unknown_local_rank, env={"LOCAL_RANK": ""}):
        assert isinstance(error, RuntimeError)
        assert "LOCAL_RANK is not in the environment" in str(error)


def collect_on_gpus(device_type: str) -> bool:
    rank, size = distributed.rank(), distributed.world_size()
    mine = torch.full((rank + 1,), rank, device=device_type)
    gathered = distributed.all_gather(mine)
    assert all(part.device == mine.device for part in gathered)
    assert [part.tolist() for part in gathered] == [[r] * (r + 1) for r in range(size)]
    assert distributed.all_reduce(mine[:1]).tolist() == [sum(range(size))]
    assert distributed.all_gather({"on": mine})[-1]["on"].is_cpu
    assert distributed.broadcast(mine, src=size - 1).tolist() == [size - 1] * size
    distributed.barrier()
    return True


@pytest.mark.gpu
@pytest.mark.parametrize("device_type", ["cuda", "cpu"])
def test_gpu_collectives(device_type: str) -> None:
    """With nccl and gloo, tensors of either device arrive whole and stay on their device."""
    count = torch.cuda.device_count()
    assert all(run_ranks(collect_on_gpus, device_type, world_size=count, gpus=True))


def exchange_with_itself(backend: str | None, devices: list[str]) -> bool:
    same: Any = functools.partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)
    with distributed.setup(backend):
        ranks = ranks_of()
        for device, size in itertools.product(devices, (3, 5000)):  # in the header, and after it
            mine = torch.arange(float(size), device=device)
            mine[1] = torch.nan
            for value in (mine, mine.bfloat16(), mine[0], mine[:0]):
                same(_collectives._all_gather(value, "gather", True, ranks), [value])
                for op in ("sum", "max"):
                    found = _collectives._all_reduced(value.clone(), op, Transfer(op))
                    same(found.to(device), value)
            for arrive in [Transfer("send").send(mine, 0) for _ in range(3)]:
                arrive()
        told = agree("barrier", _messages.encode(None)[0])
    return len(told) == 1


def test_exchange_with_itself() -> None:
    """A group of one rank can do each exchange, though no public function makes one."""
    assert run_ranks(exchange_with_itself, None, ["cpu"], world_size=1, group=False) == [True]


@pytest.mark.gpu
@pytest.mark.parametrize("backend", [None, "nccl", "gloo"])
def test_exchange_with_itself_on_a_gpu(backend: str | None) -> None:
    """On one GPU too, each exchange brings tensors of the GPU and of the CPU whole."""
    devices = ["cuda", "cpu"]
    assert run_ranks(
        exchange_with_itself, backend, devices, world_size=1, group=False, gpus=True
    ) == [True]


def encode_for_nccl() -> bool:
    with distributed.setup("nccl") as device:
        assert _messages.transport_device() == device
        for value in (torch.ones(2), torch.ones((), device=device), {"a": 1}):
            assert distributed.all_gather(value) == [value]
    return True


@pytest.mark.gpu
def test_nccl_alone() -> None:
    """A group that has nccl alone carries data of the CPU too."""
    assert run_ranks(encode_for_nccl, world_size=1, group=False, gpus=True) == [True]


def raise_after_a_collective() -> None:
    dist.all_reduce(torch.ones(1, device="cuda"))
    raise KeyError("weight")


@pytest.mark.gpu
def test_an_error_on_gpus() -> None:
    """A rank that raises on a GPU ends with its own error, though nccl is still in use."""
    results = run_ranks(raise_after_a_collective, world_size=torch.cuda.device_count(), gpus=True)
    assert all(isinstance(error, KeyError) for error in results)


@pytest.mark.gpu
def test_more_ranks_than_gpus() -> None:
    """One rank more than there are GPUs is an error on every rank."""
    count = torch.cuda.device_count()
    for error in run_ranks(distributed.rank, world_size=count + 1, gpus=True):
        assert isinstance(error, ValueError)
        assert f"start at most {count} (torchrun --nproc-per-node={count})" in str(error)
