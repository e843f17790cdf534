"""Compute the statistics of batch norm again, for weights that were averaged."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batteries import distributed
from batteries._device import to_device
from batteries._modules import reshard, unwrap
from batteries.distributed._messages import is_sharded


def update_bn(
    model: nn.Module, loader: Iterable[Any], device: torch.device | str | None = None
) -> None:
    """Compute the statistics of batch norm again, over the batches of all ranks.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    >>> update_bn(model, [torch.ones(8, 2), torch.zeros(8, 2)])
    >>> int(model[1].num_batches_tracked)
    2

    Batch norm's statistics belong to the weights used in training. Averaged weights need new ones.
    Each batch norm gets the mean of the statistics of its calls, weighted by their samples. With
    batches of equal size torch's `update_bn` computes the same. A batch norm that is not called
    keeps its statistics.

    All ranks call it, each with its part of the batches, and get the same statistics. Only batch
    norm is in training mode: dropout is off. Compiled code runs uncompiled. `SyncBatchNorm` needs
    the same number of batches on each rank. A model of FSDP2 needs at least one batch on each rank.
    A model without batch norm is not run.

    Args:
        loader: Batches of the training data, with the augmentations that the model will see. If a
            batch is a tuple or list, the model gets its first element. If a batch is a dict, the
            model gets the arguments of `forward` by name, or the whole dict if it has none of them.
            Other batches are passed as they are.
        device: Where the batches go. Default: where the model's first parameter is.

    Raises:
        ValueError: The model has batch norms, but none of them sees a sample. Or there is no such
            device. Or a rank has no batch for a model of FSDP2.
        Exception: The error of a rank, on every rank. After any error, the model has its old
            statistics.
    """
    module = unwrap(model)
    norms = [
        part
        for part in module.modules()
        if isinstance(part, _BatchNorm) and part.running_mean is not None
    ]
    if not norms:
        return
    if device is None:
        device = [*module.parameters(), *norms[0].buffers()][0].device
    reshard(module)
    with _collecting(module, norms) as seen, _uncompiled():
        if any(map(is_sharded, module.parameters())):
            _run_in_step(module, loader, device, seen)
        else:
            distributed.together(functools.partial(_run, module, loader, device))
    _share(norms, seen)


class _Seen:
    """The statistics of one batch norm, summed over its calls."""

    def __init__(self, norm: _BatchNorm) -> None:
        self.calls = self.samples = 0
        self.counts = True
        # Mean and variance, (2, features), each times the number of samples.
        self.total = torch.zeros_like(torch.stack(_statistics(norm)), dtype=torch.float64)

    def add(self, norm: _BatchNorm, inputs: Any, output: Tensor) -> None:  # noqa: ARG002
        """A forward hook. The momentum is 1, so the batch norm has the statistics of this call."""
        if len(output) and self.counts:
            self.calls, self.samples = self.calls + 1, self.samples + len(output)
            for total, value in zip(self.total, _statistics(norm), strict=True):
                total.add_(value, alpha=len(output))


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


@contextmanager
def _collecting(module: nn.Module, norms: list[_BatchNorm]) -> Iterator[list[_Seen]]:
    """Only batch norm is in training mode. After the block the modules are as before."""
    modes = {part: part.training for part in module.modules()}
    momenta = [norm.momentum for norm in norms]
    before = [tensor.clone() for norm in norms for tensor in norm.buffers()]
    seen = [_Seen(norm) for norm in norms]
    hooks = [norm.register_forward_hook(own.add) for norm, own in zip(norms, seen, strict=True)]
    module.eval()
    try:
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = 1.0
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
        for part, mode in modes.items():
            part.training = mode
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        buffers = (tensor for norm in norms for tensor in norm.buffers())
        for tensor, value in zip(buffers, before, strict=True):
            tensor.copy_(value)


def _uncompiled() -> AbstractContextManager[Any]:
    """Compiled code does not call hooks that were added later."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


@torch.no_grad()
def _run(module: nn.Module, loader: Iterable[Any], device: Any) -> None:
    for batch in loader:
        args, kwargs = _inputs(module, to_device(batch, device))
        module(*args, **kwargs)


@torch.no_grad()
def _run_in_step(module: nn.Module, loader: Iterable[Any], device: Any, seen: list[_Seen]) -> None:
    """Run as often as the other ranks.

    A rank that has no more batches repeats its last batch. The repeated batch does not count.
    """
    batches = distributed.together(lambda: iter(loader))
    last = None
    while True:
        batch = distributed.together(
            lambda: [to_device(each, device) for each in islice(batches, 1)]
        )
        last = batch or last
        ranks = distributed.all_gather((bool(batch), last is None))
        if not any(more for more, _ in ranks):
            return
        without = [rank for rank, (_, never) in enumerate(ranks) if never]
        if without:
            raise ValueError(
                f"update_bn: the loader of rank {without[0]} has no batches; a model of FSDP2 runs "
                "on all ranks together: give each rank at least one batch"
            )
        for own in seen:
            own.counts = bool(batch)
        args, kwargs = _inputs(module, last[0])  # type: ignore[index]
        module(*args, **kwargs)


def _inputs(module: nn.Module, batch: Any) -> tuple[list[Any], dict[str, Any]]:
    if isinstance(batch, tuple | list):
        return [batch[0]], {}
    if not isinstance(batch, Mapping):
        return [batch], {}
    known = inspect.signature(module.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known):
        return [], dict(batch)
    named = {p.name: batch[p.name] for p in known if p.name in batch}
    return ([], named) if named else ([batch], {})


@torch.no_grad()
def _share(norms: list[_BatchNorm], seen: list[_Seen]) -> None:
    """Give each batch norm the statistics of all ranks. All ranks sum up in the same order."""
    own = [(part.calls, part.samples, part.total.cpu()) for part in seen]
    everybody = list(zip(*distributed.all_gather(own), strict=True))  # by batch norm, then by rank
    if not any(samples for ranks in everybody for _, samples, _ in ranks):
        raise ValueError(
            "update_bn: no rank's loader has a batch, or the model calls no batch norm; pass "
            "batches of the training data"
        )
    for norm, ranks in zip(norms, everybody, strict=True):
        calls, samples, totals = zip(*ranks, strict=True)
        if any(calls):
            means = torch.stack(totals).sum(0) / sum(samples)
            for value, mean in zip(_statistics(norm), means, strict=True):
                value.copy_(mean)
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.fill_(sum(calls))
