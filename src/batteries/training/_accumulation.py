"""Gradient accumulation: small batches with the gradient of one large batch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain, islice
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from batteries import distributed
from batteries._foreign import brief
from batteries._modules import as_module, drop_unreduced, own_part
from batteries._numbers import as_number, as_whole
from batteries._warnings import warn
from batteries.data import Arrival, DataLoader
from batteries.data._failing import Failed, Going
from batteries.distributed._groups import Group, ranks_of
from batteries.training._clipping import clip, share_overflow
from batteries.training._foreign_loaders import Place, fetched
from batteries.training._samples import samples_in

T = TypeVar("T")
_learned: WeakSet[nn.Module] = WeakSet()  # DDP models that have recorded their static graph
_latest: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # the pass of the last window


class Window:
    """One micro-batch of a window; only `accumulate` makes it. A window's gradients are added up.

    >>> loss = nn.Linear(2, 1)(torch.ones(4, 2)).mean()
    >>> for x, window in accumulate([torch.ones(4, 2)], nn.Linear(2, 1)):
    ...     with window:
    ...         window.backward(loss)
    >>> window.closed
    True

    Attributes:
        closed: Whether this is the window's last micro-batch. The optimizer steps after it.
        weight: The factor of this micro-batch's loss: the micro-batch's share of the window of all
            ranks, times the number of ranks.
    """

    __slots__ = ("_pass", "_sharing", "_step", "_unscaled", "closed", "weight")

    def __init__(self, of: _Pass, step: int, closed: bool, weight: float) -> None:
        self._pass = of
        self._step = step
        self._sharing: Any = None
        self._unscaled: list[Optimizer] = []
        self.closed = closed
        self.weight = weight

    def __enter__(self) -> Window:
        """Let DDP and FSDP2 reduce gradients only in the window's last backward pass."""
        of = self._pass
        if of.set_sync is not None:
            of.set_sync(self.closed)
        elif of.no_sync is not None and not self.closed and not of.learns():
            self._sharing = of.no_sync()
            self._sharing.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._pass.set_sync is not None and not self.closed:
            self._pass.set_sync(True)  # for backward passes of the program's own
        if self._sharing is not None:
            self._sharing.__exit__(*error)
            self._sharing = None

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this micro-batch, weighted by its share of the window.

        Args:
            loss: A scalar: the mean over what `accumulate` counts, by default the samples. If
                nothing is counted in the batch, the loss may be NaN, and its gradient is zero.

        Raises:
            ValueError: The loss is not a scalar, or DDP cannot reduce its gradient.
            TypeError: The loss is not a tensor.
        """
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"the loss is {brief(loss)}; expected a tensor that depends on the model's output"
            )
        if loss.dim():
            raise ValueError(
                f"the loss has shape {tuple(loss.shape)}; expected one number, the mean over the "
                "batch: loss.mean()"
            )
        if self.weight == 0:
            shares = self._pass.no_sync is not None or self._pass.set_sync is not None
            if self.closed and shares and loss.grad_fn is None:
                raise ValueError(
                    "nothing is counted in the batch, and its loss does not depend on the model, "
                    "but the other ranks wait for gradients: compute the loss from the model's "
                    "output as always (it may be NaN), or pass output.sum() * 0"
                )
            _backward_of_zero(loss)
            return
        self._pass.watch(loss, self._step)
        weighted = loss if self.weight == 1 else loss * self.weight
        if self._pass.scaler is not None:
            weighted = self._pass.scaler.scale(weighted)
        weighted.backward()  # type: ignore[no-untyped-call]

    def clip(
        self,
        gradients_of: Optimizer | Iterable[Tensor],
        max_norm: float,
        *,
        scaler: torch.amp.GradScaler | None = None,
    ) -> Tensor:
        """Scale the window's gradients so that their norm is at most `max_norm`.

        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> for x, window in accumulate([torch.ones(4, 2)] * 2, model, accumulation_steps=2):
        ...     with window:
        ...         window.backward(model(x).mean())
        ...     if window.closed:
        ...         norm = window.clip(optimizer, max_norm=1.0)
        ...         stepped = window.step(optimizer)

        The result is that of `torch.nn.utils.clip_grad_norm_`. With a scaler, the gradients are
        unscaled first, once. For DTensors (FSDP2) the norm is that of the whole gradients, so all
        ranks call `clip`. The call does not wait for the GPU.

        Args:
            gradients_of: The optimizer, or parameters.
            max_norm: The largest norm allowed. `math.inf` clips nothing and returns the norm.
            scaler: The scaler of the loss, if you did not pass it to `accumulate`.

        Returns:
            The norm before clipping, a scalar, the same on all ranks that share gradients.

        Raises:
            ValueError: `max_norm` is negative or NaN.
            RuntimeError: The window is not closed, so its gradient is not complete. Or you have
                unscaled the optimizer yourself, or skipped a step without `scaler.update()`.
            TypeError: There is a scaler, and you passed parameters, not the optimizer. Or you
                passed neither, or `max_norm` is not a number.
        """
        self._check_closed("clip")
        if not (max_norm := as_number(max_norm, "max_norm")) >= 0:
            raise ValueError(f"max_norm is {max_norm}; expected 0 or more")
        scaler = self._pass.scaler if scaler is None else scaler
        if not isinstance(gradients_of, Optimizer):
            if scaler is not None and scaler.is_enabled():
                raise TypeError(
                    "clip got parameters whose gradients are scaled: pass the optimizer, so that "
                    "the scaler can unscale its gradients"
                )
            return clip(gradients_of, max_norm)
        if scaler is not None and not any(gradients_of is other for other in self._unscaled):
            scaler.unscale_(gradients_of)
            self._unscaled.append(gradients_of)
        groups = gradients_of.param_groups
        return clip((p for group in groups for p in group["params"]), max_norm)

    def _check_closed(self, call: str) -> None:
        if not self.closed:
            raise RuntimeError(
                f"{call} was called in the middle of a window, where the gradient is not complete: "
                "call it after the last micro-batch, `if window.closed:`"
            )

    def step(self, *optimizers: Optimizer) -> bool:
        """Step the optimizers, through the scaler if there is one; return whether they stepped.

        Step the scheduler only if this returns True: the scaler skips a step whose gradients
        overflow. Pass all optimizers in one call, because the scaler is updated after it.

        Raises:
            TypeError: No optimizer was passed, or something else was passed, such as a list.
            RuntimeError: The window is not closed, so its gradient is not complete. Or there is a
                scaler, and an optimizer that was clipped is missing.
        """
        self._check_closed("step")
        if not optimizers:
            raise TypeError("step got no optimizer: pass all of them, window.step(optimizer)")
        for optimizer in optimizers:
            if not hasattr(optimizer, "step"):
                raise TypeError(
                    f"step got {brief(optimizer)}; expected optimizers: window.step(first, second)"
                )
        scaler = self._pass.scaler
        if scaler is None:
            for optimizer in optimizers:
                optimizer.step()
            return True
        if any(all(one is not other for other in optimizers) for one in self._unscaled):
            raise RuntimeError(
                "step did not get all optimizers that clip has unscaled. The scaler would later "
                "unscale the missing ones again: pass all of them, window.step(first, second)"
            )
        before = scaler.get_scale()
        for optimizer in optimizers:
            share_overflow(scaler, optimizer)
            scaler.step(optimizer)
        scaler.update()
        self._unscaled.clear()
        return bool(scaler.get_scale() >= before)


class _Pass:
    """The state that all windows of one pass share."""

    def __init__(self, model: Any, scaler: Any, epoch: int | None) -> None:
        self._model = model
        self.no_sync = getattr(model, "no_sync", None)  # DDP
        self.set_sync = getattr(model, "set_requires_gradient_sync", None)  # FSDP2
        self.scaler = scaler
        self._epoch = epoch
        self._queue: deque[tuple[torch.cuda.Event, Tensor, int]] = deque()

    def begin(self) -> None:
        _latest[self._model] = id(self)

    def abandon(self) -> None:
        """Drop the gradients that FSDP2 has added up in a window that was not closed.

        The next window would add to them, because `zero_grad` does not reach them.
        """
        if self.set_sync is not None and _latest.get(self._model) == id(self):
            drop_unreduced(self._model)

    def learns(self) -> bool:
        """Whether DDP must reduce now to record its static graph: torch fails otherwise."""
        if not getattr(self._model, "static_graph", False) or self._model in _learned:
            return False
        _learned.add(self._model)
        return True

    def watch(self, loss: Tensor, step: int) -> None:
        """Warn of a loss that is not finite. On a GPU the warning comes later, without a wait."""
        if not loss.is_cuda:
            self._tell(loss.item(), step)
            return
        value = torch.empty((), dtype=loss.dtype, pin_memory=True, device="cpu")
        value.copy_(own_part(loss).detach(), non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(torch.cuda.current_stream(loss.device))  # perhaps not the current device
        self._queue.append((copied, value, step))
        self.tell_queued()

    def tell_queued(self, wait: bool = False) -> None:
        while self._queue and (wait or self._queue[0][0].query()):  # type: ignore[no-untyped-call]
            copied, value, step = self._queue.popleft()
            copied.synchronize()
            self._tell(value.item(), step)

    def _tell(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            epoch = "" if self._epoch is None else f" of epoch {self._epoch}"
            where = f"at micro-batch {step}{epoch}, counted from 0"
            warn(f"the loss is {loss} {where}")


class Windows(Generic[T]):
    """The pairs of batch and window. `accumulate` makes it; `len` is that of the loader.

    >>> len(accumulate([torch.ones(4, 2)] * 3, nn.Linear(2, 1), 2))
    3
    """

    def __init__(
        self,
        loader: Iterable[T],
        model: nn.Module,
        steps: int,
        count: Callable[[T], float | Tensor] | None,
        scaler: torch.amp.GradScaler | None,
        group: Group,
    ) -> None:
        self._loader = loader
        self._model = model
        self._steps = steps
        self._count = count
        self._scaler = scaler
        self._group = group

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    @property
    def batches_before(self) -> int:
        """That of the loader."""
        return getattr(self._loader, "batches_before", 0)

    def __iter__(self) -> Iterator[tuple[T, Window]]:
        return Going(self._pairs())

    def _pairs(self) -> Generator[tuple[T, Window] | Failed, None, None]:
        own = self._loader if isinstance(self._loader, DataLoader) else None
        place = Place(self._loader, self._steps)
        # iter is called at once, because some loaders have no state before it.
        arrivals = fetched(iter(self._loader)) if own is None else own.arrivals()
        this = _Pass(self._model, self._scaler, None if own is None else own.epoch)
        step, ranks = -1, ranks_of(self._group).size
        arrival: Arrival | None = None
        try:
            for first in place.held(arrivals):
                this.begin()
                weighed = self._window(first, arrivals, own, ranks, step + 1)
                for arrival, weight, closing in _closed(weighed):
                    step, closed = step + 1, closing is not None
                    failed = isinstance(arrival.batch, Failed)
                    # Failed batches after the closing one were received with it.
                    if own is not None and not (failed and closed):
                        own.receive(arrival, settled=closed, failed=closing or ())
                    if closed:
                        place.let_go()
                    window = Window(this, step, closed, weight)
                    yield arrival.batch if failed else (arrival.batch, window)
        except BaseException:  # the loop was left
            this.abandon()
            raise
        if own is not None:
            own.complete(arrival)
        this.tell_queued(wait=True)

    def _window(
        self,
        first: Arrival,
        others: Iterator[Arrival],
        own: DataLoader[Any] | None,
        ranks: int,
        step: int,
    ) -> Iterator[tuple[Arrival, float]]:
        """The batches of a window and their weights. `step` is the number of its first batch."""
        sizes = None
        if own is not None and self._count is None and ranks_of(own.group) == ranks_of(self._group):
            sizes = own.sizes(first, self._steps)
        if sizes is not None:  # known before the batches are fetched
            counts: list[float] = [mine for mine, _ in sizes]
            total: float = sum(together for _, together in sizes)
            window: Iterable[Arrival] = chain([first], islice(others, len(sizes) - 1))
        else:
            _check_not_joining(self._model)
            window = [first, *islice(others, self._steps - 1)]
            counts = [self._counted(arrival, own) for arrival in window]
            total = sum(counts)
            if ranks > 1:
                told = distributed.all_gather((step, total), group=self._group)
                _check_in_step([at for at, _ in told])
                total = sum(count for _, count in told)
        weights = [count * ranks / total if total else 0.0 for count in counts]
        return zip(window, weights, strict=True)

    def _counted(self, arrival: Arrival, own: DataLoader[Any] | None) -> float:
        batch = arrival.batch
        if isinstance(batch, Failed):
            return 0.0
        if self._count is not None:
            count = as_number(self._count(batch), "the result of count")
        else:
            whole = own is None or (own.batch_size is None and own.batch_sampler is None)
            count = samples_in(batch, 0 if whole else len(arrival.indices))
        if not 0 <= count < math.inf:
            raise ValueError(f"count returned {count} for a batch; expected 0 or more, and finite")
        return count


def accumulate(
    loader: Iterable[T],
    model: nn.Module,
    accumulation_steps: int = 1,
    *,
    count: Callable[[T], float | Tensor] | None = None,
    scaler: torch.amp.GradScaler | None = None,
    group: Group = None,
) -> Windows[T]:
    """Group batches into windows. A window has the gradient of one batch with all its samples.

    >>> model, batches = nn.Linear(2, 1), [torch.randn(4, 2), torch.randn(4, 2), torch.randn(3, 2)]
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> for x, window in accumulate(batches, model, accumulation_steps=2):
    ...     with window:
    ...         loss = model(x).square().mean()
    ...         window.backward(loss)
    ...     if window.closed:
    ...         optimizer.step()
    ...         optimizer.zero_grad(set_to_none=True)

    The last window may be shorter, and batches may differ in size, also between ranks: each is
    weighted by its number of samples. DDP and FSDP2 reduce gradients once a window.

    All batches of a window are fetched before the first is returned. `batteries.data`'s loader
    fetches only one batch ahead, if it knows the sizes of the batches. It does not know them if you
    pass `count`, `collate_fn` or `batch_sampler`, or if the dataset is iterable.

    If a batch fails, `next` raises its error, and the next call goes on with the next batch. The
    last good batch closes the window. A checkpoint of the loader inside a window resumes with the
    window's first batch. A checkpoint after a window resumes with the next window.

    Args:
        loader: Any iterable of batches. All ranks need the same number of batches. Put a progress
            bar around `accumulate`, not around the loader.
        model: The model that the loop calls, wrapped or not.
        accumulation_steps: The number of batches in a window.
        count: Returns the number of items over which a batch's loss is a mean. For tokens:
            `lambda batch: (batch[1] != PAD).sum()`. Default: the number of samples. If the loader
            is not `batteries.data`'s, this is the length of the batch's tensors. If the lengths
            differ, it is that of the first column, which must be a tensor.
        scaler: A `torch.amp.GradScaler`, for `window.backward` and `window.step(optimizer)`.
        group: The ranks whose gradients are averaged. Default: the group of the loader if it is
            `batteries.data`'s and has one, else that of DDP, else all ranks.

    Raises:
        ValueError: `accumulation_steps` is below 1. In the loop: `count` returned a number that is
            negative or not finite, or there is no `count`, and the number of samples in a batch is
            not known.
        RuntimeError: In the loop: the ranks have different numbers of batches.
        TypeError: `accumulation_steps` is not a whole number, `model` is no module, or `group` is
            no group. In the loop: `count` did not return a number.
    """
    accumulation_steps = as_whole(accumulation_steps, "accumulation_steps", 1, " batches")
    if group is None and isinstance(loader, DataLoader):
        group = loader.group
    inside = getattr(model, "_orig_mod", model)
    if group is None and isinstance(inside, DistributedDataParallel):
        group = inside.process_group
    ranks_of(group)  # raises if the group is not usable
    return Windows(loader, as_module(model), accumulation_steps, count, scaler, group)


def _check_not_joining(model: nn.Module) -> None:
    """Raise inside of torch's `Join`: a rank that has ended does not take part in our exchange."""
    if getattr(getattr(model, "_join_config", None), "enable", False):
        raise RuntimeError(
            "accumulate was called inside of torch's Join, but accumulate needs the same number "
            "of batches on all ranks: leave out Join, and use shuffle=True, drop_last=True or "
            "batches_per_pass of batteries.data.DataLoader"
        )


def _check_in_step(steps: list[int]) -> None:
    """Raise if some ranks have begun their next pass: different windows would be added up."""
    if len(set(steps)) > 1:
        where = ", ".join(f"rank {rank} is at micro-batch {at}" for rank, at in enumerate(steps))
        raise RuntimeError(
            f"the ranks have different numbers of batches: now {where}, counted from 0 in each "
            "pass. Give all ranks the same number; batteries.data.DataLoader does so with "
            "shuffle=True, drop_last=True or batches_per_pass"
        )


def _closed(
    window: Iterable[tuple[Arrival, float]],
) -> Iterator[tuple[Arrival, float, list[Arrival] | None]]:
    """The batches of a window; the last good one comes with the failed ones after it.

    A batch is returned once the next good one is known, because the last good one closes the
    window.
    """
    waiting: list[tuple[Arrival, float]] = []  # a batch, and the failed ones after it
    for pair in window:
        if not isinstance(pair[0].batch, Failed):
            yield from ((*other, None) for other in waiting)
            waiting.clear()
        waiting.append(pair)
    closing: list[Arrival] | None = None
    while waiting:
        arrival, weight = waiting.pop(0)
        if not isinstance(arrival.batch, Failed):
            closing = [other for other, _ in waiting]
        yield arrival, weight, closing


def _backward_of_zero(loss: Tensor) -> None:
    """Give a zero gradient to every parameter that the loss depends on, even if the loss is NaN.

    The backward pass must run, because DDP and FSDP2 wait for its hooks. Each node's result is
    replaced by zeros, because 0 * NaN is NaN.
    """
    if loss.grad_fn is None:
        return
    nodes, seen = [loss.grad_fn], {loss.grad_fn}
    for node in nodes:
        new = {following for following, _ in node.next_functions if following} - seen
        if node.next_functions:  # nodes of parameters outlive the pass, and hooks on them would too
            node.register_hook(_zeros)
        nodes.extend(new)
        seen |= new
    loss.backward(torch.zeros_like(loss))  # type: ignore[no-untyped-call]


def _zeros(gradients: tuple[Tensor | None, ...], _: Any) -> tuple[Tensor | None, ...]:
    return tuple(None if own is None else torch.zeros_like(own) for own in gradients)
