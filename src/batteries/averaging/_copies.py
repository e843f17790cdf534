"""A copy of a model that shares nothing with it."""

from __future__ import annotations

import copy
import operator
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from batteries.averaging._shards import finish_copy, prepare_copy


def copy_of(model: nn.Module) -> nn.Module:
    """A copy of a model whose forward pass uses only its own weights.

    A replaced `forward` is bound to the copy. Compiled functions are copied uncompiled. Tensors
    that the last forward pass has left in the model are copied without their history.
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
            if callable(value) and not isinstance(value, nn.Module):
                bound = _bound_anew(value, memo, {})
                if bound is not value:
                    vars(other)[name] = bound
    return same


def _bound_anew(value: Any, memo: dict[int, Any], done: dict[int, Any]) -> Any:
    """A function or module, bound to the copy instead of the model."""
    if isinstance(value, nn.Module):
        return memo.get(id(value), value)
    if id(value) not in done:
        done[id(value)] = value  # a function may call itself
        compiled = getattr(value, "_torchdynamo_orig_callable", None)
        if compiled is not None:
            done[id(value)] = _bound_anew(compiled, memo, done)
        elif isinstance(value, MethodType):
            function, owner = value.__func__, value.__self__
            done[id(value)] = MethodType(
                _bound_anew(function, memo, done), _bound_anew(owner, memo, done)
            )
        elif isinstance(value, FunctionType):
            _check_globals(value, memo)
            done[id(value)] = _with_cells(value, memo, done)
    return done[id(value)]


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
    if all(map(operator.is_, cells, anew)):
        return function
    same = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        tuple(anew),
    )
    same.__kwdefaults__ = function.__kwdefaults__
    return same
