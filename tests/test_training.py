"""The gradient of a window is that of its samples in one batch."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 (its usual name)
from ranks import run_ranks
from sweeps import sweep
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.algorithms.join import Join
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, TensorDataset

from batteries import accumulate, distribute, distributed
from batteries.data import DataLoader
from batteries.progress import tqdm
from batteries.training import _accumulation

PAD = -100


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def samples(count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 5, dtype=dtype, generator=generator)
    y = torch.randint(3, (count, 4), generator=generator)
    y[torch.rand(count, 4, generator=generator) < 0.5] = PAD  # some rows have nothing to count
    y[:3] = PAD
    return x, y


def token_loss(logits: Tensor, y: Tensor) -> Tensor:
    """The mean over tokens that are not padding, as a user writes it: NaN without any."""
    losses = F.cross_entropy(logits.repeat_interleave(4, 0), y.flatten(), reduction="none")
    return losses.sum() / (y != PAD).sum()


def mean_loss(logits: Tensor, y: Tensor) -> Tensor:
    return (logits - y.clamp(0)[:, :3]).square().mean()


LOSSES: dict[str, tuple[Any, Any]] = {
    "samples": (mean_loss, None),
    "tokens": (token_loss, lambda batch: (batch[1] != PAD).sum()),
}


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def window_gradients(
    kind: str, count: int, batch_size: int, steps: int, dtype: torch.dtype, plain: bool
) -> list[tuple[list[Any], list[Tensor]]]:
    """The indices of each window, and its gradient."""
    loss, counter = LOSSES[kind]
    data = TensorDataset(*samples(count, dtype), torch.arange(count))
    model: nn.Module = network(dtype)
    if distributed.world_size() > 1:
        model = DistributedDataParallel(model, find_unused_parameters=count % 2 == 1)
    loader: Any = DataLoader(data, batch_size, shuffle=True, seed=5)
    if plain:
        loader = list(loader)
    found, indices = [], []
    for (x, y, index), window in accumulate(loader, model, steps, count=counter):
        indices += index.tolist()
        with window:
            window.backward(loss(model(x), y))
        if window.closed:
            found.append((indices, gradients(model)))
            model.zero_grad(set_to_none=True)
            indices = []
    return found


CASES = [
    (kind, count, batch_size, steps)
    for kind in LOSSES
    for count, batch_size, steps in [(24, 4, 3), (25, 4, 3), (26, 4, 4), (5, 2, 8), (13, 3, 1)]
]


def all_windows(dtype: torch.dtype, divide: int, plain: bool) -> list[Any]:
    return [
        window_gradients(kind, count, batch_size // divide or 1, steps, dtype, plain)
        for kind, count, batch_size, steps in CASES
    ]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("dtype", "rtol"), [sweep(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("world_size", [1, sweep(2), 3])
def test_the_gradient_of_the_big_batch(
    world_size: int, dtype: torch.dtype, rtol: float, plain: bool
) -> None:
    """Each window has the gradient of its samples in one batch: all lengths, sizes and ranks."""
    results = run_ranks(all_windows, dtype, world_size, plain, world_size=world_size)
    for (kind, count, _, _), ranks in zip(CASES, zip(*results, strict=True), strict=True):
        x, y = samples(count, dtype)
        for windows in zip(*ranks, strict=True):
            indices = [index for mine, _ in windows for index in mine]
            model = network(dtype)
            LOSSES[kind][0](model(x[indices]), y[indices]).backward()
            if not (kind == "tokens" and (y[indices] == PAD).all()):
                big = torch.cat([gradient.flatten() for gradient in gradients(model)])
                for _, mine in windows:
                    found = torch.cat([gradient.flatten() for gradient in mine])
                    assert (found - big).norm() <= rtol * big.norm()


def test_nothing_to_count() -> None:
    """A window in which nothing is counted has a gradient of zero, not NaN."""
    model = network(torch.float32)
    x, y = samples(3, torch.float32)
    batches = [(x, torch.full_like(y, PAD))] * 2
    for (x, y), window in accumulate(batches, model, 2, count=LOSSES["tokens"][1]):
        with window:
            window.backward(token_loss(model(x), y))
    assert all((gradient == 0).all() for gradient in gradients(model))


WRAPPERS: dict[str, Any] = {
    "bare": lambda model: model,
    "compiled": lambda model: torch.compile(model, backend="aot_eager"),
    "DDP": DistributedDataParallel,
    "DDP, static": lambda model: DistributedDataParallel(model, static_graph=True),
    "DDP, unused": lambda model: DistributedDataParallel(model, find_unused_parameters=True),
    "compiled DDP": lambda model: torch.compile(
        DistributedDataParallel(model), backend="aot_eager"
    ),
    "FSDP2": lambda model: [fully_shard(part) for part in [model[0], model[2], model]][-1],
}


def padded_windows(wrapper: str) -> list[float]:
    """The largest error of a gradient, for padding alone at each place of a window."""
    x, y = samples(24, torch.float64)
    y[y == PAD] = 0
    alone = wrapper in ("bare", "compiled")  # they average nothing
    group = dist.new_group([distributed.rank()], use_local_synchronization=True)
    rank, errors = 0 if alone else distributed.rank(), []
    for place in range(3):
        for padded in ([0], [1], [0, 1]):
            labels = y.reshape(2, 3, 4, 4).clone()  # rank, place, rows
            labels[padded, place] = PAD
            own = [(x.reshape(2, 3, 4, 5)[rank, i], labels[rank, i]) for i in range(3)]
            whole = network(torch.float64)
            rows = (x[:12], labels[0].reshape(12, 4)) if alone else (x, labels.reshape(24, 4))
            token_loss(whole(rows[0]), rows[1]).backward()  # type: ignore[no-untyped-call]
            model = WRAPPERS[wrapper](network(torch.float64))
            count = LOSSES["tokens"][1]
            windows = accumulate(own, model, 3, count=count, group=group if alone else None)
            for (inputs, targets), window in windows:
                with window:
                    window.backward(token_loss(model(inputs), targets))
            found = [p.grad for p in model.parameters()]
            full = [g.full_tensor() if isinstance(g, DTensor) else g for g in found]
            pairs = zip(full, gradients(whole), strict=True)
            errors += [float((one - other).abs().max()) for one, other in pairs]
    return errors


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_padding_alone_in_every_wrapper(wrapper: str) -> None:
    """A micro-batch with nothing to count adds zero, at any place, on any rank, in any wrapper."""
    for errors in run_ranks(padded_windows, wrapper):
        assert len(errors) == 9 * 4
        assert max(errors) < 1e-12


def test_padding_alone_leaves_nothing_behind() -> None:
    """The nodes that DDP keeps get no hook for each window in which nothing is counted."""
    model = nn.Linear(2, 1)
    kept = torch.autograd.graph.get_gradient_edge(model.weight)
    references = []
    for x, window in accumulate([torch.ones(2, 2)] * 5, model, count=lambda _: 0):
        with window:
            window.backward(model(x).mean())
        references.append(sys.getrefcount(_accumulation._zeros))
    assert references[1:] == references[:-1]
    assert kept.node.next_functions == ()


def weights_in_a_part_of_the_ranks() -> list[list[float]]:
    """Each rank trains a model of its own."""
    alone = dist.new_group([distributed.rank()], use_local_synchronization=True)
    sizes = [(1, 3), (4, 4)][distributed.rank()]
    batches, bare = [torch.ones(size, 2) for size in sizes], nn.Linear(2, 1)
    wrapped = DistributedDataParallel(bare, process_group=alone)
    compiled: Any = torch.compile(wrapped, backend="eager")
    loader: Any = DataLoader(TensorDataset(torch.ones(8, 2)), batch_size=2)  # 4 rows for each rank
    found = [
        accumulate(loader, bare, 2, group=alone),
        accumulate(loader, wrapped, 2),
        accumulate(batches, wrapped, 2),
        accumulate(batches, compiled, 2),
    ]
    return [[window.weight for _, window in windows] for windows in found]


def test_a_part_of_the_ranks() -> None:
    """A window is that of the ranks that average gradients: `group`, or the ranks of DDP."""
    even, uneven = run_ranks(weights_in_a_part_of_the_ranks)
    assert even == [[0.5, 0.5], [0.5, 0.5], [0.25, 0.75], [0.25, 0.75]]
    assert uneven == [[0.5, 0.5]] * 4


def loss_without_a_graph() -> str:
    model: Any = distribute(nn.Linear(2, 1), "cpu")
    pairs = iter(accumulate([torch.ones(2, 2)] * 2, model, 2, count=lambda _: 0))
    for _, window in islice(pairs, 1):
        window.backward(torch.zeros(()))  # others do not wait for it
    _, window = next(pairs)
    with pytest.raises(ValueError, match="its loss does not depend on the model") as told:
        window.backward(torch.zeros(()))
    return str(told.value)


def test_a_loss_without_a_graph() -> None:
    """A window may not end with a loss that the other ranks' gradients would wait for."""
    assert all("output.sum() * 0" in told for told in run_ranks(loss_without_a_graph))


def count_all_reduces(steps: int) -> int:
    calls: list[Any] = []
    model: Any = distribute(nn.Linear(2, 1), "cpu")
    group: Any = dist.group.WORLD

    def hook(state, bucket):  # type: ignore[no-untyped-def]
        calls.append(state)
        return allreduce_hook(group, bucket)

    model.register_comm_hook(None, hook)
    for x, window in accumulate([torch.ones(2, 2)] * 8, model, steps):
        with window:
            window.backward(model(x).mean())
    return len(calls)


def test_ranks_share_once_a_window() -> None:
    """DDP all-reduces in the last backward pass of a window alone."""
    assert run_ranks(count_all_reduces, 4) == [2, 2]


def test_a_window_that_is_cut_short_comes_again() -> None:
    """The loader's state inside a window is that before it; after its last batch, after it."""
    loader = DataLoader(TensorDataset(torch.arange(20)), 2, shuffle=True, seed=1)
    positions = []
    for _, window in accumulate(loader, nn.Linear(1, 1), 4):
        positions.append((loader.state_dict()["position"], window.closed, len(loader.indices)))
    starts = [0, 0, 0, 8, 8, 8, 8, 16, 16, 20]
    assert positions == [
        (at, at in (8, 16, 20) and i in (3, 7, 9), 2) for i, at in enumerate(starts)
    ]


class Stateful:
    """A loader of another library, whose state counts the batches that it has given."""

    def __init__(self) -> None:
        self.given = 0

    def __iter__(self) -> Iterator[Tensor]:
        while self.given < 10:
            self.given += 1
            yield torch.full((2,), self.given)
        self.given = 0

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]


def test_the_state_of_other_loaders_in_a_window() -> None:
    """It is that of the window's beginning until the window is closed, and a pass goes on there."""
    expected = [0, 0, 0, 4, 4, 4, 4, 8, 8, 0]
    for done in range(11):
        loader, seen = Stateful(), []
        for x, _ in islice(accumulate(loader, nn.Identity(), 4), done):
            seen.append(int(x[0]))
            assert loader.state_dict() == {"given": expected[len(seen) - 1]}
        at = loader.state_dict()  # also after a pass that was broken off
        other = Stateful()
        other.load_state_dict(at)
        rest = [int(x[0]) for x, _ in accumulate(other, nn.Identity(), 4)]
        assert sorted({*seen, *rest}) == [*range(1, 11)]
        loader.load_state_dict(at)
        assert [int(x[0]) for x in loader] == rest
        assert "state_dict" not in vars(loader)


class Wrapper:
    """As Fabric's loader."""

    def __init__(self, loader: Any) -> None:
        self._dataloader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self._dataloader)


@pytest.mark.parametrize("wrap", [tqdm, Wrapper, lambda loader: Wrapper(tqdm(loader))])
def test_the_state_of_a_wrapped_loader_in_a_window(wrap: Callable[[Any], Any]) -> None:
    """A loader in a progress bar, or in another library's wrapper, has the window's place, too."""
    data = TensorDataset(torch.arange(20))
    for done in (1, 3, 4, 6):
        loader, other = (DataLoader(data, 2, shuffle=True, seed=1) for _ in range(2))
        pairs = islice(accumulate(wrap(loader), nn.Identity(), 4), done)
        seen = [int(each) for (x,), _ in pairs for each in x]
        other.load_state_dict(loader.state_dict())
        rest = [int(each) for (x,) in other for each in x]
        assert sorted({*seen, *rest}) == [*range(20)]
        assert len(seen) + len(rest) == 20 + 2 * (done % 4)


def only_some(rows: list[tuple[Tensor]]) -> Tensor:
    """Drops what is broken, here odd numbers; makes two crops of each other sample on rank 1."""
    kept = torch.stack([row for (row,) in rows if row.item() % 2 == 0] or list(rows[0]))
    return kept.repeat(2) if distributed.rank() == 1 else kept


def mean_of_what_came() -> tuple[float, float]:
    dataset = TensorDataset(torch.arange(22.0))
    loader = DataLoader(dataset, batch_size=4, shuffle=True, seed=1, collate_fn=only_some)
    weight = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(weight.weight)
    model, seen = distribute(weight, "cpu"), []
    for x, window in accumulate(loader, model, accumulation_steps=9):
        seen += x.flatten().tolist()
        with window:
            window.backward(model(x.reshape(-1, 1)).mean())
    everything = torch.cat([torch.tensor(part) for part in distributed.all_gather(seen)])
    gradient = gradients(model)[0].item()
    return gradient, everything.mean().item()


def test_batches_of_another_size_than_was_planned() -> None:
    """Where a `collate_fn` drops or adds samples, those that came are what is averaged."""
    for gradient, expected in run_ranks(mean_of_what_came):
        assert gradient == pytest.approx(expected, rel=1e-6)


def boxes_of(row: int) -> dict[str, Tensor]:
    """A sample as detection has them: its tensors have other lengths than other samples'."""
    return {"image": torch.full((3, 2 + row % 3), float(row)), "boxes": torch.ones(1 + row % 4, 4)}


def nodes_of(rows: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Graphs in one tensor of nodes, the graph of each node, and a label for each graph."""
    sizes = torch.tensor([1 + row % 5 for row in rows])
    nodes, labels = torch.tensor([*map(float, rows)]), torch.ones(len(rows))
    return nodes.repeat_interleave(sizes), torch.arange(len(rows)).repeat_interleave(sizes), labels


COLLATED: dict[str, tuple[Callable[[list[int]], Any], Callable[[Any], list[float]]]] = {
    "a list of samples": (
        lambda rows: [*map(boxes_of, rows)],
        lambda batch: [sample["image"].mean().item() for sample in batch],
    ),
    "a list of images": (
        lambda rows: [boxes_of(row)["image"] for row in rows],
        lambda batch: [image.mean().item() for image in batch],
    ),
    "lists of columns": (
        lambda rows: tuple(zip(*[boxes_of(row).values() for row in rows], strict=True)),
        lambda batch: [image.mean().item() for image in batch[0]],
    ),
    "graphs": (
        nodes_of,
        lambda batch: [batch[0][batch[1] == i][0].item() for i in range(len(batch[2]))],
    ),
    "time first": (
        lambda rows: (torch.tensor([[*map(float, rows)]] * (7 + rows[0])), torch.tensor(rows)),
        lambda batch: batch[0][0].tolist(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", COLLATED)
def test_batches_of_samples_of_unequal_sizes(kind: str) -> None:
    """A batch counts as many samples as the loader asked for, in whatever form they come."""
    collate, values_of = COLLATED[kind]
    rows: Any = range(10)
    batches = [[0, 1, 2, 3, 4], [5], [6, 7, 8], [9]]
    for loader in (
        DataLoader(rows, batch_sampler=batches, collate_fn=collate),
        DataLoader(rows, batch_size=4, collate_fn=collate),
    ):
        model = nn.Linear(1, 1, bias=False)
        for batch, window in accumulate(loader, model, accumulation_steps=4):
            with window:
                window.backward(model(torch.tensor(values_of(batch))[:, None]).mean())
        assert gradients(model)[0].item() == pytest.approx(4.5)


def test_a_collate_fn_that_drops_samples() -> None:
    """Two columns are not two samples: a batch of two with one left counts one."""

    def without_five(rows: list[int]) -> tuple[Tensor, Tensor]:
        kept = [float(row) for row in rows if row != 5]
        return torch.tensor(kept)[:, None], torch.tensor(kept)

    rows: Any = range(6)
    loader = DataLoader(rows, batch_size=2, collate_fn=without_five)
    weights = [window.weight for _, window in accumulate(loader, nn.Linear(1, 1), 3)]
    assert weights == [0.4, 0.4, 0.2]


@pytest.mark.parametrize("kind", ["a list of samples", "lists of columns"])
def test_samples_that_cannot_be_counted(kind: str) -> None:
    """Another library's loader does not say how many samples it asked for: `count` must."""
    collate, _ = COLLATED[kind]
    rows: Any = range(6)
    loader: Any = torch.utils.data.DataLoader(rows, batch_size=4, collate_fn=collate)
    with pytest.raises(ValueError, match="number of samples is unknown; pass count=lambda batch"):
        next(iter(accumulate(loader, nn.Linear(1, 1), 2)))


def uneven_passes(batch_size: int, passes: int) -> None:
    numbers: Any = range(13)
    own: Any = DataLoader(numbers, batch_size=batch_size)
    loader = [torch.ones(2)] * (3 + distributed.rank()) if batch_size == 1 else own
    for _ in range(passes):
        for _, window in accumulate(loader, nn.Linear(1, 1)):
            assert window.weight == 1


@pytest.mark.parametrize("batch_size", [1, 2])
def test_ranks_with_different_numbers_of_batches(batch_size: int) -> None:
    """A rank that begins its next pass is not counted in the last window of another rank."""
    for error in run_ranks(uneven_passes, batch_size, 2):
        assert "have different numbers of batches" in str(error)
        assert "at micro-batch 0" in str(error)


def join_with_uneven_batches() -> None:
    model = distribute(nn.Linear(1, 1), "cpu")
    with Join([model]):  # type: ignore[list-item]
        for x, window in accumulate([torch.ones(2, 1)] * (1 + distributed.rank()), model):
            window.backward(model(x).mean())


def test_join() -> None:
    """Inside of torch's `Join` no rank waits for the ranks that have ended."""
    for error in run_ranks(join_with_uneven_batches):
        assert "inside of torch's Join" in str(error)


def weights_after_a_resume() -> list[float]:
    numbers: Any = range(12)
    loader: Any = DataLoader(numbers, batch_size=2, seed=1)
    loader.load_state_dict({**loader.state_dict(), "position": 3})
    return [window.weight for _, window in accumulate(loader, nn.Linear(1, 1), 3)]


def test_uneven_windows_after_a_resume() -> None:
    """The rest of a pass, resumed with another number of ranks, is weighted by what each gets."""
    assert run_ranks(weights_after_a_resume) == [[4 / 9, 4 / 9, 2 / 9], [4 / 9, 4 / 9]]


def test_one_batch_at_a_time() -> None:
    """A window's batches are fetched one ahead of their turn, where their sizes are known."""
    fetched: list[int] = []

    class Noting(Dataset[Tensor]):
        def __len__(self) -> int:
            return 41

        def __getitem__(self, index: int) -> Tensor:
            fetched.append(index)
            return torch.ones(1)

    for batch_size, drop_last in ((2, False), (4, True)):
        loader = DataLoader(Noting(), batch_size, drop_last=drop_last, shuffle=True)
        weights = []
        for step, (_, window) in enumerate(accumulate(loader, nn.Linear(1, 1), 8)):
            assert len(fetched) == min((step + 1 + (not window.closed)) * batch_size, 41)
            weights.append(window.weight)
        assert sum(weights[:8]) == pytest.approx(1)
        assert len(weights) == len(loader)
        fetched.clear()


class Noted(Dataset[int]):
    def __init__(self, length: int) -> None:
        self.length, self.fetched = length, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        self.fetched += 1
        return index


def fetched_in_order() -> list[tuple[int, float]]:
    """The samples that were fetched for the first batch, and the weights of all."""
    found = []
    for length, drop_last in ((24, False), (26, False), (25, True)):
        data = Noted(length)
        windows = accumulate(DataLoader(data, 2, drop_last=drop_last), nn.Linear(1, 1), 8)
        pairs = [(data.fetched, window.weight) for _, window in windows]
        found.append((pairs[0][0], sum(weight for _, weight in pairs)))
    return found


def test_one_batch_at_a_time_in_order() -> None:
    """So it is on several ranks without a shuffle, where each has equally many batches."""
    for rank in run_ranks(fetched_in_order):
        assert rank == [(4, pytest.approx(1))] * 3


def test_draws_do_not_depend_on_the_window() -> None:
    """What the loop draws at a micro-batch is the same in windows of any length."""

    def draws(steps: int) -> list[float]:
        loader = DataLoader(TensorDataset(torch.arange(20)), 2, shuffle=True, seed=1)
        return [float(torch.rand(())) for _ in accumulate(loader, nn.Linear(1, 1), steps)]

    assert draws(1) == draws(3) == draws(4)


@pytest.mark.parametrize("overflow", [False, True])
def test_scaler(overflow: bool) -> None:
    """With a scaler the gradient is the same, and a step that was left out is told."""
    model = network(torch.float32)
    before = [p.clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x, y = samples(8, torch.float32)
    batches = [(x[:4], y[:4]), (x[4:] * (1e38 if overflow else 1), y[4:])]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the loss is inf")
        for (x, y), window in accumulate(batches, model, 2, scaler=scaler):
            with window:
                window.backward(mean_loss(model(x), y) * (1e38 if overflow else 1))
            if window.closed:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                assert window.step(optimizer) != overflow
    same = all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert same == overflow


def backward_of_all(pairs: Any, device: str = "cpu") -> None:
    weight = torch.ones(1, requires_grad=True, device=device)
    for (x,), window in pairs:
        window.backward((weight * x.to(device)).sum())


def test_nan_is_told() -> None:
    """A loss that is not finite is told with its epoch and step; the loop is the user's."""
    loader = DataLoader(TensorDataset(torch.tensor([1.0, 2, torch.nan, 4])), 1)
    loader.set_epoch(3)
    pairs = accumulate(loader, nn.Identity(), 2)
    with pytest.warns(UserWarning, match="the loss is nan at micro-batch 2 of epoch 3"):
        backward_of_all(pairs)


@pytest.mark.gpu
def test_nan_on_a_gpu_is_told() -> None:
    """A loss on a GPU, the current one or the last one, is told of without waiting for it."""
    for device in ("cuda", f"cuda:{torch.cuda.device_count() - 1}"):
        pairs = accumulate([[torch.ones(1)], [torch.ones(1) / 0]], nn.Identity())
        with torch.cuda.device(device):
            torch.cuda._sleep(10**7)  # type: ignore[no-untyped-call]  # the copies are late
        with pytest.warns(UserWarning, match="the loss is inf at micro-batch 1"):
            backward_of_all(pairs, device)


def test_bad_input() -> None:
    """Windows of nothing, losses that are no number and negative counts are named."""
    model, batches = nn.Linear(2, 1), [torch.ones(2, 2)]
    with pytest.raises(ValueError, match="accumulation_steps is 0; expected 1 or more"):
        accumulate(batches, model, 0)
    with pytest.raises(TypeError, match=r"accumulation_steps is 1\.5; .* whole number of batches"):
        accumulate(batches, model, 1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"count returned -1\.0 for a batch"):
        list(accumulate(batches, model, count=lambda _: -1))
    with pytest.raises(ValueError, match=r"count returned inf for a batch; .* finite"):
        list(accumulate(batches, model, count=lambda _: float("inf")))
    with pytest.raises(TypeError, match="the result of count is None; expected one number"):
        list(accumulate(batches, model, count=lambda _: None))  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="pass count="):
        list(accumulate(["text"], model))
    [(x, window)] = accumulate(batches, model)
    with pytest.raises(ValueError, match=r"the loss has shape \(2, 1\); expected one number"):
        window.backward(model(x))


def test_len() -> None:
    """A progress bar around it knows how many micro-batches there are."""
    assert len(accumulate([1, 2, 3], nn.Identity(), 2)) == 3
