"""A learning rate range test, after which the model is restored."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from batteries import distributed
from batteries._modules import reshard
from batteries._numbers import as_number, as_whole
from batteries._optional import import_optional
from batteries._seeding import isolated_rng
from batteries.training._clipping import whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MEMORY = 0.9  # of the running mean of losses


class LearningRates:
    """Learning rates and their losses, as `lr_range_test` returns them.

    >>> found = LearningRates([0.01, 0.1, 1.0], [0.5, 0.4, 9.0])
    >>> round(found.suggestion, 3)
    0.01

    Attributes:
        lr: The rates, in rising order.
        loss: The loss before each step, as the mean of all ranks.
    """

    def __init__(self, lr: list[float], loss: list[float]) -> None:
        self.lr, self.loss = lr, loss

    @property
    def smoothed(self) -> list[float]:
        """The exponential running means of the losses (factor 0.9), for the suggestion."""
        means, mean = [], 0.0
        for number, loss in enumerate(self.loss, start=1):
            mean = _MEMORY * mean + (1 - _MEMORY) * loss
            means.append(mean / (1 - _MEMORY**number))
        return means

    @property
    def suggestion(self) -> float:
        """A tenth of the rate at which the smoothed loss was lowest."""
        smoothed = self.smoothed
        return self.lr[smoothed.index(min(smoothed))] / 10

    def plot(self) -> Figure:
        """A matplotlib figure of the losses over the rates.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        figures = import_optional("matplotlib.figure", needs="matplotlib", for_="plot")
        figure: Figure = figures.Figure(layout="constrained")
        axes = figure.subplots()
        axes.plot(self.lr, self.loss, alpha=0.3, label="loss")
        axes.plot(self.lr, self.smoothed, label="smoothed")
        axes.axvline(self.suggestion, linestyle=":", label=f"{self.suggestion:.2g}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
        axes.legend()
        return figure


def lr_range_test(
    step: Callable[[], Tensor | float],
    model: nn.Module,
    optimizer: Optimizer,
    *others: Any,
    lowest: float = 1e-7,
    highest: float = 10.0,
    steps: int = 100,
    diverged: float = 4.0,
) -> LearningRates:
    """Take steps at rising learning rates, keep the losses, and restore everything.

    >>> model = nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> def step():
    ...     loss = model(torch.ones(4, 2)).square().mean()
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    ...     return loss
    >>> found = lr_range_test(step, model, optimizer, steps=20)
    >>> found.suggestion < 10, optimizer.param_groups[0]["lr"]
    (True, 0.1)

    This is the test of Smith (https://arxiv.org/abs/1506.01186). The rates rise exponentially.
    Afterwards, even if `step` raised, the model (parameters, gradients, buffers, modes), the
    optimizer and all random generators have the same bits as before. All ranks call it, and the
    mean of their losses decides when it ends.

    Args:
        step: Takes one training step on the next batch and returns the loss before the step. Use
            a separate loader for its batches: the loader of the training is not restored.
        others: Other objects that a step changes, such as a scaler or an average. They need
            `state_dict` and `load_state_dict`.
        lowest: The first rate. If the optimizer has several groups, it applies to the group with
            the largest rate, and the others keep their ratio to it.
        highest: The last rate, unless the loss diverges before.
        steps: The number of rates, and so the most steps.
        diverged: The test ends if the smoothed loss is above `diverged` times its lowest value; 1
            or more. It always ends if the loss is not finite.

    Raises:
        ValueError: The rates do not rise, there are fewer than 2 steps, `diverged` is below 1, or
            the first loss is not finite.
        TypeError: `step` returned None or no single number, `steps` is not a whole number, or
            another argument is not a number.
    """
    steps, diverged = as_whole(steps, "steps"), as_number(diverged, "diverged")
    lowest, highest = as_number(lowest, "lowest"), as_number(highest, "highest")
    if not diverged >= 1:
        raise ValueError(f"diverged is {diverged}; expected 1 or more")
    if not (0 < lowest < highest < math.inf and steps >= 2):
        raise ValueError(
            f"lowest is {lowest}, highest {highest} and steps {steps}; expected rates that rise "
            "from above 0, and 2 steps or more"
        )
    found = LearningRates([], [])
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    ratios = [rate / max(rates) if any(rates) else 1.0 for rate in rates]  # all 0 before a warm-up
    with isolated_rng(), _kept(model, optimizer, others):
        for number in range(steps):
            rate = lowest * (highest / lowest) ** (number / (steps - 1))
            for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
                _set(group, "lr", rate * ratio)
            own = whole(step())
            if own is None:
                raise TypeError(
                    "step returned None; expected the loss, a number or a tensor of one"
                )
            loss = distributed.all_reduce(as_number(own, "the loss of step"), "mean")
            if not math.isfinite(loss):
                break
            found.lr.append(rate)
            found.loss.append(loss)
            smoothed = found.smoothed
            if smoothed[-1] > diverged * min(smoothed) > 0:
                break
    if not found.lr:
        raise ValueError(
            f"the loss is {loss} at the first step, at a learning rate of {lowest}: check the "
            "batch and the model"
        )
    return found


@contextmanager
def _kept(model: nn.Module, optimizer: Optimizer, others: tuple[Any, ...]) -> Iterator[None]:
    """Restore, in place, everything that steps change."""
    reshard(model)  # its parameters are then those that the optimizer has
    modules = [(module, module.training, dict(module._buffers)) for module in model.modules()]
    all_tensors = [*model.parameters(), *model.buffers()]
    gradients = [(p, p.grad) for p in model.parameters()]
    all_tensors += [gradient for _, gradient in gradients if gradient is not None]
    tensors = [(tensor, tensor.detach().clone()) for tensor in all_tensors]
    # Not with load_state_dict, which casts states to the parameters' dtype.
    state = {key: _copied(value) for key, value in optimizer.state.items()}
    plain = [{n: v for n, v in group.items() if n != "params"} for group in optimizer.param_groups]
    groups = [_copied(group) for group in plain]
    states = [(other, copy.deepcopy(other.state_dict())) for other in others]
    try:
        yield
    finally:
        for module, training, buffers in modules:
            module.training = training
            module._buffers.clear()  # a step may have registered others
            module._buffers.update(buffers)
        with torch.no_grad():
            for tensor, before in tensors:
                tensor.copy_(before)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, known in zip(optimizer.param_groups, groups, strict=True):
            for name, value in known.items():
                _set(group, name, value)
        for other, known in states:
            other.load_state_dict(known)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_copied(each) for each in value]
    return value.detach().clone() if isinstance(value, Tensor) else value


def _set(group: dict[str, Any], name: str, value: Any) -> None:
    """Set a value of a group; a tensor is changed in place, because compiled code may hold it."""
    if isinstance(group[name], Tensor):
        group[name].copy_(torch.as_tensor(value, device=group[name].device))
    else:
        group[name] = value
