"""The statistics of batch norm, computed again for weights that no training step has seen."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batteries import distributed
from batteries.device import to_device
from batteries.modules import unwrap


def update_bn(
    model: nn.Module, loader: Iterable[Any], device: torch.device | str | None = None
) -> None:
    """Compute the statistics of batch norm again, over the batches of all ranks.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    >>> update_bn(model, [torch.ones(8, 2), torch.zeros(8, 2)])
    >>> int(model[1].num_batches_tracked)
    2

    Averaged weights have statistics of their own. They become the mean of those of the batches,
    each counting for as much as it has samples: with batches of one size what torch's `update_bn`
    computes. All ranks call it, each with its part of the batches, and have the same statistics
    then. Batch norm alone is in training mode: dropout is off, as it is when the model predicts.
    `SyncBatchNorm` wants as many batches on each rank, as in training.

    Args:
        loader: Of batches of the training data, not augmented more than what the model is to see.
            Of a tuple or list the model gets the first element; of a dict what `forward` has
            arguments for, by name, or all of it where it has none of them; anything else as it is.
        device: Where the batches go. Default: where the model is.

    Raises:
        ValueError: No rank has a batch.
        Exception: The error of a rank, on every rank; the model has its old statistics then.
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
    with _collecting(module, norms):
        run = functools.partial(_run, module, norms, loader, device)
        samples, batches = distributed.together(run)
        _share(norms, samples, batches)


@contextmanager
def _collecting(module: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    """Batch norm alone in training mode; after an error, with the statistics that it had."""
    modes = {part: part.training for part in module.modules()}
    momenta = [norm.momentum for norm in norms]
    before = [tensor.clone() for norm in norms for tensor in norm.buffers()]
    module.eval()
    try:
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
        yield
    except BaseException:
        for tensor, value in zip(
            (t for norm in norms for t in norm.buffers()), before, strict=True
        ):
            tensor.copy_(value)
        raise
    finally:
        for part, mode in modes.items():
            part.training = mode
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@torch.no_grad()
def _run(
    module: nn.Module, norms: list[_BatchNorm], loader: Iterable[Any], device: Any
) -> tuple[int, int]:
    """See all batches; how many samples and batches there were."""
    samples = batches = 0
    for batch in loader:
        args, kwargs = _inputs(module, to_device(batch, device))
        size = _size_of([*args, *kwargs.values()]) or 1  # of what has no tensors, all the same
        samples, batches = samples + size, batches + 1
        for norm in norms:
            norm.momentum = size / samples  # a running mean, weighted
        module(*args, **kwargs)
    return samples, batches


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


def _size_of(values: list[Any]) -> int:
    """The samples of a batch: the length of the first tensor in it."""
    for value in values:
        if isinstance(value, Tensor):
            return len(value)
        inner = list(value.values() if isinstance(value, Mapping) else value)
        if isinstance(value, Mapping | tuple | list) and (size := _size_of(inner)):
            return size
    return 0


@torch.no_grad()
def _share(norms: list[_BatchNorm], samples: int, batches: int) -> None:
    """The mean over the ranks, each counting for as much as it has samples."""
    statistics = [
        t for norm in norms for t in (norm.running_mean, norm.running_var) if t is not None
    ]
    own = torch.cat([tensor.double().reshape(-1).cpu() for tensor in statistics])
    ranks = distributed.all_gather((samples, batches, own if batches else None))
    total = sum(part for part, _, _ in ranks)
    if not total:
        raise ValueError("update_bn: the loader has no batches, on any rank")
    if len(ranks) > 1:
        # each rank sums up in the same order: the same bits
        terms = [values * (part / total) for part, _, values in ranks if values is not None]
        mean, at = torch.stack(terms).sum(0), 0
        for tensor in statistics:
            tensor.copy_(mean[at : at + tensor.numel()])
            at += tensor.numel()
    for norm in norms:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.fill_(sum(number for _, number, _ in ranks))
