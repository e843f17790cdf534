"""A copy of a model that shares nothing with it."""

from __future__ import annotations

import copy
import functools
import operator
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from batteries.averaging._shards import finish_copy, prepare_copy


def copy_of(model: nn.Module) -> nn.Module:
    """A copy of a model whose forward pass uses only its own weights.

    A `forward` that was replaced is bound to the copy, and so are hooks and functions in attributes
    that use the model. Compiled functions are copied uncompiled. Tensors that the last forward pass
    has left in the model are copied without their history.
    """
    for name, tensor in model.named_parameters():
        if is_lazy(tensor):
            raise ValueError(
                f"{name} has no shape yet: run one batch through the model before you make its "
                "average"
            )
    memo: dict[int, Any] = {}
    for part in model.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:  # of weight norm, pruning
                memo[id(value)] = value.detach().clone()
    try:
        prepare_copy(model, memo)
        same = copy.deepcopy(model, memo)
        finish_copy(same)
    except Exception as error:
        raise ValueError(
            f"a {type(model).__name__} cannot be copied ({type(error).__name__}: {error}): make "
            "its average before the first forward pass, or remove the attribute that cannot be "
            "copied"
        ) from error
    for part, other in zip(model.modules(), same.modules(), strict=True):
        for name, value in [*vars(part).items()]:
            if isinstance(value, list | tuple | dict):  # functions, hooks too, are not copied
                if name in vars(other):  # what divides a model is taken off
                    vars(other)[name] = _bound_anew(vars(other)[name], memo, {})
            elif callable(value) and not isinstance(value, nn.Module):
                bound = _bound_anew(value, memo, {})
                if bound is not value:
                    vars(other)[name] = bound
    return same


def _bound_anew(value: Any, memo: dict[int, Any], done: dict[int, Any]) -> Any:
    """A function, module or tensor, bound to the copy instead of the model."""
    if isinstance(value, nn.Module | Tensor):
        return memo.get(id(value), value)
    if id(value) not in done:
        done[id(value)] = value  # a function may call itself
        compiled = getattr(value, "_torchdynamo_orig_callable", None)
        if compiled is not None:
            done[id(value)] = _bound_anew(compiled, memo, done)
        elif isinstance(value, MethodType):
            both = value.__func__, value.__self__
            anew = [_bound_anew(part, memo, done) for part in both]
            if not all(map(operator.is_, both, anew)):
                done[id(value)] = MethodType(*anew)
        elif isinstance(value, FunctionType):
            _check_globals(value, memo)
            done[id(value)] = _with_cells(value, memo, done)
        elif isinstance(value, functools.partial):
            parts = value.func, value.args, value.keywords
            anew = [_bound_anew(part, memo, done) for part in parts]
            if not all(map(operator.is_, parts, anew)):
                done[id(value)] = functools.partial(anew[0], *anew[1], **anew[2])
        elif isinstance(value, list | tuple | dict):
            done[id(value)] = _filled_anew(value, memo, done)
    return done[id(value)]


def _filled_anew(value: Any, memo: dict[int, Any], done: dict[int, Any]) -> Any:
    """A list, tuple or dict whose values are bound anew; the same where none has to be."""
    old = list(value.values()) if isinstance(value, dict) else list(value)
    anew = [_bound_anew(each, memo, done) for each in old]
    if all(map(operator.is_, old, anew)):
        return value
    if isinstance(value, tuple):
        return type(value)(*anew) if hasattr(value, "_fields") else tuple(anew)
    same = copy.copy(value)
    if isinstance(value, dict):
        same.update(zip(value, anew, strict=True))
    else:
        same[:] = anew
    return same


def _check_globals(function: FunctionType, memo: dict[int, Any]) -> None:
    for name in function.__code__.co_names:
        found = function.__globals__.get(name)
        owner = getattr(found, "__self__", found)
        if isinstance(owner, nn.Module) and id(owner) in memo:
            raise ValueError(
                f"{function.__qualname__}, which is in an attribute of the model, uses the model "
                f"by the global name {name}: the average would run with the live weights; make it "
                "a method, or set the attribute after you have made the average"
            )


def _with_cells(function: FunctionType, memo: dict[int, Any], done: dict[int, Any]) -> FunctionType:
    """A function with its closure bound to the copy. The same function if nothing changes."""
    cells = function.__closure__ or ()
    anew: list[CellType] = []
    for cell in cells:
        try:
            inside = cell.cell_contents
        except ValueError:  # a name that has no value yet
            anew.append(cell)
        else:
            bound = _bound_anew(inside, memo, done)
            anew.append(cell if bound is inside else CellType(bound))
    defaults = _bound_anew(function.__defaults__, memo, done)
    keywords = _bound_anew(function.__kwdefaults__, memo, done)
    unlike = defaults is not function.__defaults__ or keywords is not function.__kwdefaults__
    if all(map(operator.is_, cells, anew)) and not unlike:
        return function
    same = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        defaults,
        tuple(anew),
    )
    same.__kwdefaults__ = keywords
    return same
