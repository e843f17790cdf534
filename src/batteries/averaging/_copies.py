"""A copy of a model that shares nothing with it."""

from __future__ import annotations

import copy
import dis
import functools
import operator
import weakref
from collections import defaultdict, deque
from contextlib import suppress
from itertools import chain
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from batteries.averaging._shards import finish_copy, prepare_copy

_MOST = 100_000  # objects to look at
_CONTAINERS = (list, tuple, dict, set, frozenset, deque)
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, ModuleType)
_PROXIES = (weakref.ProxyType, weakref.CallableProxyType)


def copy_of(model: nn.Module) -> nn.Module:
    """A copy of a model. The copy's forward pass uses only the copy's weights.

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
        if isinstance(part, torch.jit.ScriptModule):
            raise ValueError(
                f"a {type(part).__name__} cannot be averaged: make the average of the module from "
                "which torch.jit made it"
            )
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
    memories = {each for tensor in model.parameters() if (each := _memory_of(tensor))}
    binding = _Binding(memo, memories)
    for part, other in zip(model.modules(), same.modules(), strict=True):
        binding.check_class(type(part))
        for name, value in [*vars(part).items()]:
            if isinstance(value, list | tuple | dict):  # deepcopy copies no functions and no hooks
                if value and name in vars(other):  # the copy has no attributes of FSDP2
                    vars(other)[name] = binding.of(vars(other)[name])
            elif type(value) in _PROXIES or not isinstance(value, nn.Module | Tensor):
                bound = binding.of(value)
                if bound is not value:
                    vars(other)[name] = bound
    return same


def _memory_of(tensor: Tensor) -> int:
    with suppress(Exception):  # some kinds of tensors have none
        return tensor.untyped_storage().data_ptr()
    return 0


class _Binding:
    """Binds functions, and objects that hold them, to the copy instead of the model.

    Args:
        memo: The copies of objects, by the ids of the originals.
        memories: Where the model's weights are.
    """

    def __init__(self, memo: dict[int, Any], memories: set[int]) -> None:
        self._memo, self._memories = memo, memories
        self._done: dict[int, Any] = {}
        self._checked: set[type] = set()

    def of(self, value: Any) -> Any:
        if isinstance(value, _PLAIN):
            return value
        if type(value) in _PROXIES:
            owner = value.__repr__.__self__
            return weakref.proxy(self._memo[id(owner)]) if id(owner) in self._memo else value
        if isinstance(value, nn.Module | Tensor):
            return self._memo.get(id(value), value)
        if id(value) not in self._done:
            self._done[id(value)] = value  # a function may call itself
            self._done[id(value)] = self._anew(value)
        return self._done[id(value)]

    def _anew(self, value: Any) -> Any:
        own = getattr(value, "__dict__", None)
        own = own if isinstance(own, dict) else None  # some objects answer to every name
        if own and "_torchdynamo_orig_callable" in own:
            bound = self.of(compiled := own["_torchdynamo_orig_callable"])
            return value if bound is compiled else bound
        if isinstance(value, MethodType):
            return self._made_anew(value, MethodType, value.__func__, value.__self__)
        if isinstance(value, FunctionType):
            self._check_globals(value)
            return self._function(value)
        if isinstance(value, functools.partial):
            return self._made_anew(value, _partial, value.func, value.args, value.keywords)
        if isinstance(value, weakref.ref):
            return self._made_anew(value, type(value), value())
        if isinstance(value, _CONTAINERS):
            return self._container(value)
        return value if own is None else self._object(value)

    def _made_anew(self, value: Any, make: Any, *parts: Any) -> Any:
        """What `make` makes of the new parts; the value itself if no part is new."""
        anew = [self.of(part) for part in parts]
        return value if all(map(operator.is_, parts, anew)) else make(*anew)

    def _container(self, value: Any) -> Any:
        old = list(value.values()) if isinstance(value, dict) else list(value)
        anew = [self.of(each) for each in old]
        if all(map(operator.is_, old, anew)):
            return value
        if isinstance(value, tuple):
            return type(value)(*anew) if hasattr(value, "_fields") else tuple(anew)
        if isinstance(value, set | frozenset):
            return type(value)(anew)
        same = copy.copy(value)
        if isinstance(value, dict):
            same.update(zip(value, anew, strict=True))
        else:
            for place, each in enumerate(anew):
                same[place] = each
        return same

    def _object(self, value: Any) -> Any:
        """An object with its attributes bound anew: the copy of the object, if there is one."""
        self.check_class(type(value))
        same = self._memo.get(id(value))
        if len(self._done) > _MOST:
            return value if same is None else same
        held = vars(value if same is None else same)
        anew = self._container(held)
        if anew is held:
            return value if same is None else same
        if hasattr(value, "cache_parameters"):  # of functools.lru_cache
            return functools.lru_cache(**value.cache_parameters())(anew["__wrapped__"])
        same = copy.copy(value) if same is None else same
        vars(same).update(anew)
        return same

    def _function(self, function: FunctionType) -> FunctionType:
        """A function with its closure bound to the copy. The same function if nothing changes."""
        cells = [self._cell(function, cell) for cell in function.__closure__ or ()]
        parts = function.__defaults__, function.__kwdefaults__, vars(function)
        defaults, keywords, attributes = anew = [self.of(part) for part in parts]
        old = *(function.__closure__ or ()), *parts
        if all(map(operator.is_, old, [*cells, *anew])):
            return function
        itself = [i for i, cell in enumerate(cells) if _inside(cell) is function]
        for i in itself:
            cells[i] = CellType()
        same = FunctionType(
            function.__code__, function.__globals__, function.__name__, defaults, tuple(cells)
        )
        for i in itself:  # a function that calls itself
            cells[i].cell_contents = same
        same.__kwdefaults__ = keywords
        same.__dict__.update(attributes)
        return same

    def _cell(self, function: FunctionType, cell: CellType) -> CellType:
        inside = _inside(cell)
        bound = self.of(inside)
        if bound is not inside:
            return CellType(bound)
        if isinstance(inside, Tensor) and _memory_of(inside) in self._memories:
            raise ValueError(
                f"{function.__qualname__}, which is in an attribute of the model, uses a tensor "
                "that shares the memory of a parameter (such as weight.data): the average would "
                "run with the live weights; use the parameter itself"
            )
        return cell

    def check_class(self, kind: type) -> None:
        """Raise if a method of a class has a part of the model in its closure.

        Of a module, only `forward` and what it calls are looked at: other methods may set up the
        module.
        """
        if kind in self._checked:
            return
        self._checked.add(kind)
        methods = defaultdict[str, list[FunctionType]](list)
        for name, each in chain.from_iterable(vars(base).items() for base in kind.__mro__):
            if isinstance(each, FunctionType) and name != "__init__":
                methods[name].append(each)
        names = deque(["forward", "__call__"] if issubclass(kind, nn.Module) else methods)
        while names:
            for function in methods.pop(names.popleft(), ()):
                names.extend(function.__code__.co_names)
                if any(self.of(own) is not own for own in map(_inside, function.__closure__ or ())):
                    raise ValueError(
                        f"{function.__qualname__} uses a part of the model by a name outside of "
                        "its class: the average would run with the live weights; use an attribute "
                        "of self"
                    )

    def _check_globals(self, function: FunctionType) -> None:
        for name in function.__code__.co_names:
            found = function.__globals__.get(name)
            owner = getattr(found, "__self__", found)
            if not (isinstance(owner, nn.Module) and id(owner) in self._memo):
                continue
            read = ((each.opname, each.argval) for each in dis.get_instructions(function))
            if ("LOAD_GLOBAL", name) in read:  # not an attribute of this name
                raise ValueError(
                    f"{function.__qualname__}, which is in an attribute of the model, uses the "
                    f"model by the global name {name}: the average would run with the live "
                    "weights; make it a method, or set the attribute after you have made the "
                    "average"
                )


def _inside(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that has no value yet
        return None


def _partial(function: Any, arguments: Any, keywords: Any) -> Any:
    return functools.partial(function, *arguments, **keywords)
