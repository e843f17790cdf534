"""Averages of a model's weights during training: EMA and SWA."""

from __future__ import annotations

import itertools
import operator
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from batteries._device import known_device
from batteries._foreign import values_in
from batteries._modules import own_part, reshard, sharded_like, unwrap
from batteries._numbers import as_number, as_whole
from batteries.averaging._copies import copy_of
from batteries.averaging._shards import divide, gather_in_forward
from batteries.checkpoint._contents import renamed, state_of, without_compile
from batteries.distributed._messages import is_sharded


class _Running:
    """A running average of a model's weights."""

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device | str | None = None,
        buffers: Literal["copy", "average"] = "copy",
    ) -> None:
        if buffers not in ("copy", "average"):
            raise ValueError(f"buffers is {buffers!r}; expected 'copy' or 'average'")
        home = None if device is None else known_device(device)
        reshard(target := unwrap(model))
        self.module = copy_of(target).to(home).requires_grad_(False).eval()
        gather_in_forward(self.module, target)
        self._buffers = buffers
        self._updates = 0
        self._swapped = False
        self._pairs: _Pairs | None = None
        tensors = _tensors_of(self.module)
        # This is decided once, although a buffer may get or lose infinities later.
        self._averaged = {name for name, tensor in tensors.items() if self._averages(tensor)}
        self._shadows = {
            name: tensors[name].float()
            for name in self._averaged
            if tensors[name].is_floating_point() and tensors[name].itemsize < 4
        }

    def state_dict(self) -> dict[str, Any]:
        """The averaged model's state under "module", and what is needed to continue.

        "shadows" has the float32 values of 16-bit weights, and the averages of buffers that a
        state dict does not have. "updates" is the number of calls of `update`.
        """
        module, tensors = state_of(self.module), _tensors_of(self.module)
        more = {name: tensors[name].detach() for name in self._averaged if name not in module}
        return {"module": module, "shadows": more | self._shadows, "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a `state_dict`. After an error nothing has changed.

        Raises:
            RuntimeError: The state is of another model. The message has the names or shapes that
                differ.
            KeyError, TypeError: The state does not come from `state_dict`.
        """
        values_in(state, f"{type(self).__name__}.state_dict", "module", "shadows", "updates")
        tensors = [*self.module.parameters(), *self.module.buffers()]
        before = [tensor.data for tensor in tensors]
        for tensor in tensors:  # the tensors of an earlier state_dict must not change
            tensor.data = tensor.data.clone()
        try:
            own = {without_compile(name): name for name in self.module.state_dict()}
            mine = self.module.state_dict()
            given = renamed(state["module"], lambda key: own.get(key, key))
            given.update({k: sharded_like(v, mine[k]) for k, v in given.items() if k in mine})
            self.module.load_state_dict(given)
            exact = {name: state["shadows"].get(name) for name in _tensors_of(self.module)}
            shadows = {name: tensor.clone() for name, tensor in self._shadows.items()}
            with torch.no_grad():
                for name, tensor in _tensors_of(self.module).items():
                    room = shadows.get(name, tensor)
                    value = tensor if exact[name] is None else exact[name]
                    own_part(room).copy_(own_part(sharded_like(value, room)))
            updates = int(state["updates"])
        except BaseException:
            for tensor, data in zip(tensors, before, strict=True):
                tensor.data = data
            raise
        self._shadows, self._updates, self._pairs = shadows, updates, None

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """A block in which the model has the averaged weights and buffers.

        After the block, even if it raised, the model has its own weights again, bit for bit, in
        the same parameters and buffers. It takes the memory of a second model.

        In the block, `state_dict()` of the model or a part of it raises, so no checkpoint pairs
        averaged weights with the optimizer of the model's own weights. `update` of any average
        of the model raises, too. `state_dict()` of a copy of the model does not raise.

        Raises:
            ValueError: The model's tensors are not those of the average. The message names one.
            RuntimeError: Inside of another such block, of this or another average.
        """
        pairs = self._pairs_with(model)
        before = [own_part(tensor).detach().clone() for tensor in pairs.theirs]
        target = unwrap(model)
        with ExitStack() as undo:
            undo.callback(setattr, self, "_swapped", False)
            for part in target.modules():
                refuse: Any = part.register_state_dict_pre_hook
                undo.callback(refuse(_Refusal(part)).remove)
            for tensor, value in zip(pairs.theirs, before, strict=True):
                undo.callback(_copy, [tensor], [value])
            for place in _places(target):  # a forward pass may replace a buffer
                undo.callback(place.update, dict(place))
            undo.push(lambda kind, *_: reshard(target, after_error=kind is not None))
            self._swapped = True
            _copy(pairs.theirs, pairs.ours)
            yield

    def _pairs_with(self, model: nn.Module) -> _Pairs:
        model = unwrap(model)
        if self._swapped or _is_swapped(model):
            raise RuntimeError(
                "the model has the average's weights inside of `swapped`: leave that block first"
            )
        for make_ready in (reshard, self._divide):
            if self._pairs is not None and self._pairs.are_those_of(model):
                return self._pairs
            make_ready(model)
        self._pairs = _Pairs(self, model)
        return self._pairs

    def _divide(self, model: nn.Module) -> None:
        """Keep only this rank's part if the model was divided after the average was made."""
        theirs = _tensors_of(model)
        if not any(map(is_sharded, theirs.values())):
            return
        divide(self.module, theirs, _tensors_of(self.module))
        shadows = self._shadows.items()
        self._shadows = {
            name: sharded_like(tensor, theirs[name]).clone().to(tensor.device)
            for name, tensor in shadows
        }
        gather_in_forward(self.module, model)

    def _averages(self, tensor: Tensor) -> bool:
        """Whether a tensor of `module` is averaged; others are copied."""
        if isinstance(tensor, nn.Parameter):
            return tensor.is_floating_point() or tensor.is_complex()
        # A mask of -inf has no running average.
        numbers = tensor.is_floating_point() or tensor.is_complex()
        if self._buffers != "average" or not numbers:
            return False
        whole: Any = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
        return bool(whole.isfinite().all())


class EMA(_Running):
    """The exponential moving average of a model's weights.

    >>> model = nn.Linear(2, 1)
    >>> ema = EMA(model, decay=0.999)
    >>> for _ in range(3):  # after each optimizer.step()
    ...     ema.update(model)
    >>> prediction = ema.module(torch.zeros(1, 2))

    `module` is a copy of the model with the averaged weights, in evaluation mode. The update is
    just: `average.lerp_(weight, 1 - decay)`, for all tensors in one call. Weights are found by
    name, with or without DDP, DataParallel or torch.compile. Tied weights are averaged once.
    16-bit weights have a float32 shadow, because an average in bfloat16 would not move.
    `make_checkpoint(..., ema=ema)` stores the average. `load_checkpoint` and `resume` load it with
    `ema=ema`.

    In `module`, extra states and attributes that are not tensors, such as a temperature, stay as
    they were when the average was made. If they change, use `swapped`.

    Do not write to a frozen parameter (`requires_grad=False`) through its `.data`: a frozen
    parameter is averaged only if its `_version` has changed.

    Args:
        model: The model, bare or wrapped. It does not change.
        decay: The weight of the old average in each update, in [0, 1]. You can set `ema.decay`
            before an update, for a schedule as in BYOL and DINO. It is not saved.
        warmup: Begin with a smaller decay: `min(decay, (1 + n) / (10 + n))` at the n-th update, as
            in TensorFlow.
        update_every: Use only every n-th call of `update`.
        update_after: In the first `update_after` calls, the average is a copy of the model.
        device: Where the average is. Default: where the model is.
        buffers: "copy" copies the model's buffers, such as batch norm's statistics. "average"
            averages floating-point buffers, too. Integer and bool buffers are always copied, and
            so are buffers that have infinities when the average is made.

    Raises:
        ValueError: A decay outside of [0, 1], an `update_every` below 1, an `update_after` below 0,
            an unknown `buffers` or `device`, or a model that cannot be copied. The message says
            what to do.
        TypeError: A decay that is not a number, or an `update_every` or `update_after` that is not
            a whole number.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.9999,
        *,
        warmup: bool = False,
        update_every: int = 1,
        update_after: int = 0,
        device: torch.device | str | None = None,
        buffers: Literal["copy", "average"] = "copy",
    ) -> None:
        self.decay = decay
        super().__init__(model, device=device, buffers=buffers)
        self._warmup = warmup
        self._every = as_whole(update_every, "update_every", 1)
        self._after = as_whole(update_after, "update_after", 0)

    @property
    def decay(self) -> float:
        """The weight of the old average in each update."""
        return self._decay

    @decay.setter
    def decay(self, decay: float) -> None:
        decay = as_number(decay, "decay")
        if not 0 <= decay <= 1:
            raise ValueError(f"decay is {decay}; expected 0 to 1, such as 0.9999")
        self._decay = decay

    def update(self, model: nn.Module) -> None:
        """Add the model's present weights. Call it after `optimizer.step()`.

        Raises:
            ValueError: The model's tensors are not those of the average. The message names one.
            RuntimeError: Inside of `swapped`.
        """
        calls = self._updates + 1
        weight = self._weight(calls)
        pairs = self._pairs_with(model)  # raises in a call that is left out, too
        if weight is not None:
            pairs.move(weight)
        self._updates = calls

    def _weight(self, calls: int) -> float | None:
        """The weight of the model in the n-th call; None if the call is left out."""
        number, between = divmod(calls - self._after, self._every)
        if calls <= self._after:
            return 1.0
        if between:
            return None
        decay = min(self._decay, (1 + number) / (10 + number)) if self._warmup else self._decay
        return 1 - decay


class SWA(_Running):
    """The equal-weight average of a model's weights at each update (arXiv 1803.05407).

    >>> model = nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> scheduler = torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.05)
    >>> swa = SWA(model)
    >>> for epoch in range(3):  # the last epochs of a training
    ...     optimizer.step()
    ...     scheduler.step()
    ...     swa.update(model)
    >>> update_bn(swa.module, loader=[torch.zeros(8, 2)])

    The update is just: `average.lerp_(weight, 1 / (n + 1))` after n updates. The rest is as in
    `EMA`. Compute the statistics of batch norm again for the averaged weights: `update_bn`.

    Args:
        model: The model, bare or wrapped. It does not change.
        device: Where the average is. Default: where the model is.
        buffers: "copy" or "average", as for `EMA`.

    Raises:
        ValueError: An unknown `buffers` or `device`, or a model that cannot be copied.
    """

    def update(self, model: nn.Module) -> None:
        """Add the model's present weights.

        Raises:
            ValueError: The model's tensors are not those of the average. The message names one.
            RuntimeError: Inside of `swapped`.
        """
        self._pairs_with(model).move(1 / (self._updates + 1))
        self._updates += 1


class _Pairs:
    """The tensors of an average and of its model, found once and checked at each use."""

    def __init__(self, average: _Running, model: nn.Module) -> None:
        own, theirs = _tensors_of(average.module), _tensors_of(model)
        _check_alike(own, theirs)
        self._model = model
        # While each place holds the same object, these are the model's tensors.
        self._views = [place.values() for place in _places(model)]
        self._values = list(_values_in(self._views))
        frozen = {
            name
            for name, tensor in theirs.items()
            if isinstance(tensor, nn.Parameter)
            and not (tensor.requires_grad or tensor.is_inference())
            and _equal(tensor, average._shadows.get(name, own[name]))
        }
        self._frozen = [(theirs[name], _versions(theirs[name])) for name in frozen]
        self.ours = [tensor for name, tensor in own.items() if name not in frozen]
        self.theirs = [theirs[name] for name in own if name not in frozen]
        self._groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
        self._halves: tuple[list[Tensor], list[Tensor]] = [], []
        for name in own:
            if name in frozen:
                continue
            exact = average._shadows.get(name, own[name])
            # The kernel for many tensors needs one dtype and one device.
            alike = exact.device, exact.dtype, theirs[name].device, theirs[name].dtype
            key = (*alike, is_sharded(exact)) if name in average._averaged else None
            ours, new = self._groups.setdefault(key, ([], []))
            ours.append(exact)
            new.append(theirs[name])
            if name in average._shadows:
                self._halves[0].append(own[name])
                self._halves[1].append(exact)

    def are_those_of(self, model: nn.Module) -> bool:
        """Whether no tensor was replaced, moved or unfrozen since, and no frozen one written to."""
        return (
            self._model is model
            and all(map(operator.is_, _values_in(self._views), self._values))
            and all(
                _versions(tensor) == version and not tensor.requires_grad
                for tensor, version in self._frozen
            )
            and all(
                (new[0].device, new[0].dtype) == key[2:4]
                for key, (_, new) in self._groups.items()
                if key is not None
            )
        )

    @torch.no_grad()
    def move(self, weight: float) -> None:
        for key, group in self._groups.items():
            ours, theirs = group
            if key is None or weight == 1:
                _copy(ours, theirs)
                continue
            if key[4]:
                ours, theirs = map(_own_parts, group)
            if key[:2] == key[2:4]:
                torch._foreach_lerp_(ours, theirs, weight)
            else:
                torch._foreach_lerp_(ours, [tensor.to(*key[:2]) for tensor in theirs], weight)
        if self._halves[0]:
            _copy(*self._halves)


@torch.no_grad()
def _copy(ours: list[Tensor], theirs: list[Tensor]) -> None:
    if ours:
        torch._foreach_copy_([*map(own_part, ours)], [*map(own_part, theirs)])


def _own_parts(sharded: list[Any]) -> list[Tensor]:
    return [tensor._local_tensor for tensor in sharded]  # ten times as fast as `own_part`


def _versions(tensor: Tensor) -> tuple[int, int]:
    return tensor._version, own_part(tensor)._version


def _equal(tensor: Tensor, average: Tensor) -> bool:
    tensor, average = own_part(tensor), own_part(average)
    return torch.equal(tensor.to(average.device, average.dtype), average)


class _Refusal:
    """A hook that makes `state_dict()` of a module raise, but not that of its copies."""

    def __init__(self, owner: nn.Module | None = None) -> None:
        self._owner = None if owner is None else weakref.ref(owner)

    def __reduce__(self) -> tuple[type[_Refusal], tuple[()]]:
        return _Refusal, ()

    def is_of(self, module: nn.Module) -> bool:
        return self._owner is not None and self._owner() is module

    def __call__(self, module: nn.Module, prefix: str, keep_vars: bool) -> None:  # noqa: ARG002
        if self.is_of(module):
            raise RuntimeError(
                "inside of `swapped` the model has the average's weights, which must not be saved "
                "as the model's: make the checkpoint after the block, with `ema=ema`; the averaged "
                "model itself is `ema.module`"
            )


def _is_swapped(module: nn.Module) -> bool:
    hooks = module._state_dict_pre_hooks.values()
    return any(isinstance(hook, _Refusal) and hook.is_of(module) for hook in hooks)


def _places(module: nn.Module) -> Iterator[dict[str, Any]]:
    """The dicts of parameters, buffers and modules of a module and of those in it."""
    for part in module.modules():
        for place in (part._parameters, part._buffers, part._modules):
            if place or part is module:
                yield place


_END = object()  # comes after the last value, so one value more or less makes a difference


def _values_in(views: list[Any]) -> Iterator[Any]:
    return itertools.chain(itertools.chain.from_iterable(views), (_END,))


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name. A tied tensor has its first name."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {without_compile(name): tensor for name, tensor in named}


def _check_alike(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    for name in {**own, **theirs}:
        if name not in theirs:
            raise ValueError(
                f"the average has {name}, but the model does not: pass the model that the average "
                "was made of"
            )
        if name not in own:
            raise ValueError(
                f"the model has {name}, but its average does not: make the average when the model "
                "is complete"
            )
        if own[name].shape != theirs[name].shape:
            raise ValueError(
                f"{name} is {tuple(theirs[name].shape)} in the model but "
                f"{tuple(own[name].shape)} in its average: pass the model that the average was "
                "made of"
            )
        if _division(own[name]) != _division(theirs[name]):
            raise ValueError(
                f"{name} is sharded in another way in the model than in its average: pass the "
                "model that fully_shard has sharded, or make a new average of this one"
            )


def _division(tensor: Any) -> Any:
    return (tensor.device_mesh, tensor.placements) if is_sharded(tensor) else None
