"""Gradient accumulation: many small batches, the gradient of the big one."""

from __future__ import annotations

import copy
import itertools
import math
import operator
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, Generic, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from batteries import distributed
from batteries.data import Arrival, DataLoader
from batteries.data._failing import Failed, Going
from batteries.data._streams import remembers
from batteries.distributed._groups import Group, ranks_of
from batteries.training._clipping import clip

T = TypeVar("T")
Count = Callable[[Any], Any]
_learned: WeakSet[nn.Module] = WeakSet()  # models in DDP that have learned their static graph


class Window:
    """One micro-batch of a window whose gradients add up; `accumulate` makes them.

    >>> loss = nn.Linear(2, 1)(torch.ones(4, 2)).mean()
    >>> for x, window in accumulate([torch.ones(4, 2)], nn.Linear(2, 1)):
    ...     with window:
    ...         window.backward(loss)
    >>> window.closed
    True

    Attributes:
        closed: Whether this is the window's last micro-batch, after which the optimizer steps.
        weight: The part of the window that this micro-batch is, times the number of ranks.
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
        """Let DDP and FSDP2 share gradients in the window's last backward pass alone."""
        of = self._pass
        if of.set_sync is not None:
            of.set_sync(self.closed)
        elif of.no_sync is not None and not self.closed and not of.learns():
            self._sharing = of.no_sync()
            self._sharing.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._sharing is not None:
            self._sharing.__exit__(*error)
            self._sharing = None

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this micro-batch, weighted so that the window's is the big batch's.

        Args:
            loss: The mean over what is counted, a scalar. With nothing counted it may be NaN: the
                gradient is zero then.

        Raises:
            ValueError: A loss that is not a scalar.
        """
        if loss.dim():
            raise ValueError(
                f"the loss has shape {tuple(loss.shape)}; expected one number, the mean over what "
                "is counted in the batch: loss.mean()"
            )
        if self.weight == 0:
            shares = self._pass.no_sync is not None or self._pass.set_sync is not None
            if self.closed and shares and loss.grad_fn is None:
                raise ValueError(
                    "nothing is counted in the batch, and its loss does not depend on the model, "
                    "for whose gradients the other ranks wait: compute it from the model's output "
                    "as always, even if it is NaN then, or pass output.sum() * 0"
                )
            _backward_of_zero(loss)
            return
        self._pass.watch(loss, self._step)
        weighted = loss if self.weight == 1 else loss * self.weight
        if self._pass.scaler is not None:
            weighted = self._pass.scaler.scale(weighted)
        weighted.backward()  # type: ignore[no-untyped-call]

    def clip(
        self, gradients_of: Optimizer | Iterable[Tensor], max_norm: float, *, scaler: Any = None
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

        As `torch.nn.utils.clip_grad_norm_` does with the gradients of the big batch. With a scaler
        it unscales them first, once. Of DTensors, as of FSDP2, it is the norm of the whole
        gradients, so all ranks call it. Nothing waits for a GPU.

        Args:
            gradients_of: The optimizer, or parameters.
            max_norm: `math.inf` clips nothing, and gives the norm.
            scaler: The one that scaled the loss, if `accumulate` was not given it.

        Returns:
            The norm before clipping, the same on all ranks that share gradients.

        Raises:
            RuntimeError: The window is not closed: its gradient is not complete. Or the optimizer
                was unscaled before, or has left out a step without `scaler.update()`.
            TypeError: Parameters in place of the optimizer, with a scaler.
        """
        if not self.closed:
            raise RuntimeError(
                "clip was called in the middle of a window, whose gradient is not complete: call "
                "it after the last micro-batch, `if window.closed:`, before step"
            )
        scaler = self._pass.scaler if scaler is None else scaler
        if not isinstance(gradients_of, Optimizer):
            if scaler is not None and scaler.is_enabled():
                raise TypeError(
                    "clip was given parameters, and their gradients are scaled: pass the "
                    "optimizer, whose gradients the scaler can unscale"
                )
            return clip(gradients_of, max_norm)
        if scaler is not None and not any(gradients_of is other for other in self._unscaled):
            scaler.unscale_(gradients_of)
            self._unscaled.append(gradients_of)
        groups = gradients_of.param_groups
        return clip((p for group in groups for p in group["params"]), max_norm)

    def step(self, *optimizers: Optimizer) -> bool:
        """Step, through the scaler where there is one; whether the optimizers really did.

        A scheduler steps only when this is True: the scaler leaves out a step whose gradients
        overflow. Pass several optimizers together: the scaler is updated once, behind all of them.

        Raises:
            RuntimeError: An optimizer that was clipped is left out, and there is a scaler.
        """
        scaler = self._pass.scaler
        if scaler is None:
            for optimizer in optimizers:
                optimizer.step()
            return True
        if any(all(one is not other for other in optimizers) for one in self._unscaled):
            raise RuntimeError(
                "step was not given all optimizers whose gradients clip has unscaled: the scaler "
                "would unscale the others again; step all at once, window.step(first, second)"
            )
        before = scaler.get_scale()
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
        self._unscaled.clear()
        return bool(scaler.get_scale() >= before)


class _Pass:
    """What the windows of a pass have in common."""

    def __init__(self, model: Any, scaler: Any, epoch: int | None) -> None:
        self._model = model
        self.no_sync = getattr(model, "no_sync", None)  # DDP
        self.set_sync = getattr(model, "set_requires_gradient_sync", None)  # FSDP2
        self.scaler = scaler
        self._epoch = epoch
        self._queue: deque[tuple[torch.cuda.Event, Tensor, int]] = deque()

    def learns(self) -> bool:
        """Whether DDP shares now to learn its static graph, once: without it torch fails."""
        if not getattr(self._model, "static_graph", False) or self._model in _learned:
            return False
        _learned.add(self._model)
        return True

    def watch(self, loss: Tensor, step: int) -> None:
        """Tell of a loss that is not finite; of one on a GPU when it has computed it."""
        if not loss.is_cuda:
            self._tell(loss.item(), step)
            return
        value = torch.empty((), dtype=loss.dtype, pin_memory=True)
        value.copy_(loss.detach(), non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        self._queue.append((copied, value, step))
        self.tell_queued()

    def tell_queued(self, wait: bool = False) -> None:
        while self._queue and (wait or self._queue[0][0].query()):  # type: ignore[no-untyped-call]
            copied, value, step = self._queue.popleft()
            copied.synchronize()
            self._tell(value.item(), step)

    def _tell(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            epoch = "" if self._epoch is None else f"of epoch {self._epoch}, "
            where = f"at micro-batch {step} {epoch}counted from 0"
            warnings.warn(f"the loss is {loss} {where}", stacklevel=4)


class Windows(Generic[T]):
    """The pairs of `accumulate`: batches and their windows, with their number.

    >>> len(accumulate([torch.ones(4, 2)] * 3, nn.Linear(2, 1), 2))
    3
    """

    def __init__(
        self,
        loader: Iterable[T],
        model: nn.Module,
        steps: int,
        count: Count | None,
        scaler: Any,
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

    def __iter__(self) -> Iterator[tuple[T, Window]]:
        return Going(self._pairs())

    def _pairs(self) -> Generator[tuple[T, Window] | Failed, None, None]:
        own = self._loader if isinstance(self._loader, DataLoader) else None
        place = _Place(self._loader, self._steps)
        arrivals = _arrivals(self._loader) if own is None else own.arrivals()
        this = _Pass(self._model, self._scaler, None if own is None else own.epoch)
        steps = itertools.count()
        for first in place.held(arrivals):
            for arrival, weight, closing in _closed(self._window(first, arrivals, own)):
                step, closed = next(steps), closing is not None
                failed = isinstance(arrival.batch, Failed)
                # A window that was cut short is to come again as a whole.
                if own is not None and not (failed and closed):
                    own.receive(arrival, settled=closed, failed=closing or ())
                if closed:
                    place.let_go()
                yield (
                    arrival.batch if failed else (arrival.batch, Window(this, step, closed, weight))
                )
        if own is not None:
            own.complete()
        this.tell_queued(wait=True)

    def _window(
        self, first: Arrival, others: Iterator[Arrival], own: DataLoader[Any] | None
    ) -> Iterator[tuple[Arrival, float]]:
        """Batches, and the part of each in the window of all ranks, times their number."""
        ranks = ranks_of(self._group)
        sizes = own.sizes(first, self._steps) if own is not None and self._count is None else None
        if sizes is not None:  # known before they are fetched
            counts: list[float] = [mine for mine, _ in sizes]
            total: float = sum(together for _, together in sizes)
            window: Iterable[Arrival] = chain([first], islice(others, len(sizes) - 1))
        else:
            window = [first, *islice(others, self._steps - 1)]
            counts = [self._counted(arrival.batch) for arrival in window]
            total = distributed.all_reduce(sum(counts), group=self._group)
        weights = [count * ranks.size / total if total else 0.0 for count in counts]
        return zip(window, weights, strict=True)

    def _counted(self, batch: Any) -> float:
        if isinstance(batch, Failed):
            return 0.0
        count = float(_size(batch) if self._count is None else self._count(batch))
        if not count >= 0:
            raise ValueError(f"count returned {count} for a batch; expected 0 or more")
        return count


def accumulate(
    loader: Iterable[T],
    model: nn.Module,
    accumulation_steps: int = 1,
    *,
    count: Count | None = None,
    scaler: Any = None,
    group: Group = None,
) -> Windows[T]:
    """Group batches into windows whose gradient is that of all their samples in one batch.

    >>> model, batches = nn.Linear(2, 1), [torch.randn(4, 2), torch.randn(4, 2), torch.randn(3, 2)]
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> for x, window in accumulate(batches, model, accumulation_steps=2):
    ...     with window:
    ...         loss = model(x).square().mean()
    ...         window.backward(loss)
    ...     if window.closed:
    ...         optimizer.step()
    ...         optimizer.zero_grad(set_to_none=True)

    The last window may be shorter, batches may differ in size, and so may those of the ranks: each
    counts by its samples. DDP and FSDP2 share gradients once a window. A window's batches are
    fetched together, unless the loader is ours and neither `count` nor a `collate_fn` of its own
    says how large they are: then the next one is fetched ahead. When a batch fails, `next` raises
    its error, and the call after it goes on; the last good batch of a window closes it. A
    checkpoint of the loader made inside a window goes on with that window's first batch, one made
    after its last batch with the next.

    Args:
        loader: Any iterable of batches; of several ranks all have equally many. Progress bars go
            around `accumulate`, not inside it.
        model: Bare or wrapped: what is called in the loop.
        count: What the loss of a batch is a mean over, by the batch: for tokens
            `lambda batch: (batch[1] != PAD).sum()`. Default: its samples.
        scaler: A `torch.amp.GradScaler`, for `window.backward` and `window.step(optimizer)`.
        group: The ranks whose gradients are averaged, as the loader's `group`. Default: that of
            the loader if it is ours, else all.

    Raises:
        ValueError: `accumulation_steps` below 1, or a negative count.
        TypeError: `accumulation_steps` that is no whole number.
    """
    try:
        accumulation_steps = operator.index(accumulation_steps)
    except TypeError:
        raise TypeError(
            f"accumulation_steps is {accumulation_steps!r}; expected a whole number of batches"
        ) from None
    if accumulation_steps < 1:
        raise ValueError(f"accumulation_steps is {accumulation_steps}; expected 1 or more")
    if group is None and isinstance(loader, DataLoader):
        group = loader.group
    ranks_of(group)  # says what is wrong with it
    return Windows(loader, model, accumulation_steps, count, scaler, group)


def _arrivals(loader: Iterable[Any]) -> Iterator[Arrival]:
    return _fetched(iter(loader))  # at once: before it, a loader has no state of its own


def _fetched(batches: Iterator[Any]) -> Iterator[Arrival]:
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:  # torch's loaders go on behind it
            batch = Failed(error, bare=True)
        yield Arrival(batch, [], 0, 0)  # nothing else is known


class _Place:
    """Where a loader of others is: inside a window that was fetched together, at its beginning."""

    def __init__(self, loader: Any, steps: int) -> None:
        foreign = not isinstance(loader, DataLoader)
        self._of = loader if steps > 1 and foreign and remembers(loader) else None
        self.let_go()

    def held(self, arrivals: Iterator[Arrival]) -> Iterator[Arrival]:
        """The first batches of windows, fetched when the loader holds its place."""
        own = self._of if hasattr(self._of, "__dict__") else None
        while True:
            if own is not None:
                state = copy.deepcopy(own.state_dict())
                vars(own)["state_dict"] = lambda state=state: copy.deepcopy(state)
                vars(own)["load_state_dict"] = self._load
            first = next(arrivals, None)
            if first is None:
                self.let_go()
                return
            yield first

    def _load(self, *arguments: Any, **options: Any) -> Any:
        self.let_go()
        assert self._of is not None
        return self._of.load_state_dict(*arguments, **options)

    def let_go(self) -> None:
        for name in ("state_dict", "load_state_dict") if hasattr(self._of, "__dict__") else ():
            vars(self._of).pop(name, None)


def _closed(
    window: Iterable[tuple[Arrival, float]],
) -> Iterator[tuple[Arrival, float, list[Arrival] | None]]:
    """The batches of a window; with the last that did not fail, which closes it, those behind it.

    Each waits until the next one has been fetched: that one may be the last, and fail.
    """
    waiting: list[tuple[Arrival, float]] = []  # a batch, and those behind it that failed
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


def _size(batch: Any) -> int:
    """The samples of a batch: the length of the first tensor in it."""
    if isinstance(batch, Tensor):
        return batch.shape[0]
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, list | tuple) and batch:
        return _size(batch[0])
    raise ValueError(
        f"a {type(batch).__name__} does not say how many samples it has; pass "
        "count=lambda batch: ... to accumulate"
    )


def _backward_of_zero(loss: Tensor) -> None:
    """Give a gradient of zero to all that a loss depends on, whatever its own would be.

    It goes the whole way, past the hooks of every wrapper: DDP waits for each gradient, and FSDP2
    shares them on the way. Each step is made zero behind it, because 0 * NaN is NaN.
    """
    if loss.grad_fn is None:
        return
    nodes, seen = [loss.grad_fn], {loss.grad_fn}
    for node in nodes:
        node.register_hook(_zeros)
        new = {following for following, _ in node.next_functions if following} - seen
        nodes.extend(new)
        seen |= new
    loss.backward(torch.zeros_like(loss))  # type: ignore[no-untyped-call]


def _zeros(gradients: tuple[Tensor | None, ...], _: Any) -> tuple[Tensor | None, ...]:
    return tuple(None if own is None else torch.zeros_like(own) for own in gradients)
