from __future__ import annotations

import functools
import types
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from batteries import EMA

ONES = torch.ones(2, 3)


def _compiled(model: Any) -> None:
    model.forward = torch.compile(model.forward, backend="eager")


def _closed_over(model: Any) -> None:
    before = model.forward

    @functools.wraps(before)
    def forward(x: Tensor, *, scale: float = 2.0) -> Tensor:
        result: Tensor = before(x) * scale + model.bias.sum()
        return result

    model.forward = forward


def _both(model: Any) -> None:
    _closed_over(model)
    _compiled(model)


def _default(model: Any) -> None:
    model.forward = lambda x, own=model: nn.functional.linear(x, own.weight)


def _partial(model: Any) -> None:
    model.forward = functools.partial(lambda own, x: x @ own.weight.T, model)


def _in_a_list(model: Any) -> None:
    model.steps = {"all": [(lambda x: x @ model.weight.T,)]}
    model.forward = lambda x: model.steps["all"][0][0](x)


def _hook(model: Any) -> None:
    model.register_forward_hook(lambda _, __, output: output * model.weight.sum())


def _hook_of_a_tensor(model: Any) -> None:
    weight = model.weight
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0] * weight.sum(),))


class Helper:
    def __init__(self, model: Any, scale: float = 2.0) -> None:
        self.parts, self.scale = {"model": model}, scale
        self.run = lambda x: x @ model.weight.T * scale

    def __call__(self, x: Tensor) -> Any:
        run: Any = self.run
        return run(x) + self.parts["model"].bias


def _object(model: Any) -> None:
    helper = Helper(model)
    model.forward = lambda x: helper(x)


def _object_as_an_attribute(model: Any) -> None:
    model.helper = Helper(model)
    model.forward = model.helper.__call__


def _weak_reference(model: Any) -> None:
    own: Any = weakref.ref(model)
    model.forward = lambda x: x @ own().weight.T


def _weak_method(model: Any) -> None:
    before, model.inner = model.forward, types.MethodType(lambda own, x: x @ own.weight.T, model)
    own: Any = weakref.WeakMethod(before)
    model.forward = lambda x: own()(x)


def _proxy(model: Any) -> None:
    own = weakref.proxy(model)
    model.forward = lambda x, own=own: x @ own.weight.T


def _in_a_set(model: Any) -> None:
    some, more = {model}, deque([model.weight])
    model.forward = lambda x: x @ next(iter(some)).weight.T + more[0].sum()


def _cached(model: Any) -> None:
    model.forward = functools.lru_cache(maxsize=0)(lambda x: x @ model.weight.T)


def _attribute_of_a_function(model: Any) -> None:
    def forward(x: Tensor) -> Any:
        return x @ forward.model.weight.T  # type: ignore[attr-defined]

    forward.model = model  # type: ignore[attr-defined]
    model.forward = forward


WAYS = [_compiled, _closed_over, _both, _default, _partial, _in_a_list, _hook, _hook_of_a_tensor]
WAYS += [_object, _object_as_an_attribute, _weak_reference, _weak_method, _proxy, _cached]
WAYS += [_attribute_of_a_function, _in_a_set]


@pytest.mark.parametrize("replace", WAYS)
def test_replaced_forward(replace: Callable[[Any], None]) -> None:
    """What uses a model in its forward pass uses the average's weights in that of the average."""
    model = nn.Linear(3, 2)
    outer = nn.Sequential(model)
    replace(model)
    ema, expected = EMA(outer, decay=1.0), outer(ONES)
    with torch.no_grad():
        model.weight.zero_()
    assert torch.equal(ema.module(ONES), expected)
    assert not torch.equal(outer(ONES), expected)


def test_forward_by_a_global_name() -> None:
    """A `forward` that finds its model by a global name cannot be averaged, and is refused."""
    program = "model = nn.Linear(3, 2)\nmodel.forward = lambda x: model.weight.sum() * x"
    names: dict[str, Any] = {"nn": nn}
    exec(program, names)
    with pytest.raises(ValueError, match=r"<lambda>.* uses the model by the global name model: "):
        EMA(names["model"])


@pytest.mark.parametrize("inside", [False, True])
def test_forward_by_the_closure_of_a_class(inside: bool) -> None:
    """A method that finds a part of the model by a name outside of its class is refused."""
    part = nn.Linear(3, 2)

    class Head:
        def __call__(self, x: Tensor) -> Tensor:
            result: Tensor = part(x)
            return result

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = part

        def forward(self, x: Tensor) -> Any:
            return part(x)

    model: Any = Model() if inside else nn.Sequential(part)
    head = Head()
    if not inside:
        model.forward = lambda x: head(x)
    with pytest.raises(ValueError, match=r"(Model.forward|Head.__call__) uses a part of the model"):
        EMA(model)


def test_names_that_do_no_harm() -> None:
    """Methods that only set a model up may use its parts by name, and attributes any names."""
    part = nn.Linear(3, 2)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.set_up()

        def set_up(self) -> None:
            self.part = part

        def forward(self, x: Tensor) -> Any:
            return self.part(x)

    program = "model = made()\nmodel.helper = lambda config: config.model"
    names: dict[str, Any] = {"made": Model}
    exec(program, names)
    ema, expected = EMA(names["model"], decay=1.0), part(ONES)
    with torch.no_grad():
        part.weight.zero_()
    assert torch.equal(ema.module(ONES), expected)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted_models() -> None:
    """A scripted model, and a traced part of a model, are refused with what to do."""
    traced: Any = torch.jit.trace(nn.Linear(3, 2), ONES)  # type: ignore[no-untyped-call]
    for model in (torch.jit.script(nn.Linear(3, 2)), nn.Sequential(traced)):
        with pytest.raises(ValueError, match=r"Module cannot be averaged: make the average of the"):
            EMA(model)


def test_forward_by_the_memory_of_a_weight() -> None:
    """A `forward` with a view of a weight in its closure cannot be averaged, and is refused."""
    model: Any = nn.Linear(3, 2)
    data = model.weight.data.T
    model.forward = lambda x: x @ data
    with pytest.raises(ValueError, match=r"<lambda>.* shares the memory of a parameter .*weight.d"):
        EMA(model)


def _of_older_torch(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # they are deprecated, and used
        made: nn.Module = getattr(nn.utils, name)(nn.Linear(3, 2))
        return made


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "prune"])
def test_models_that_deepcopy_refuses(name: str) -> None:
    """Computed weights that lie in the model as attributes are no obstacle to an average."""
    if name == "prune":
        model: nn.Module = nn.Linear(3, 2)
        prune.l1_unstructured(model, "weight", 1)  # type: ignore[no-untyped-call]
    else:
        model = _of_older_torch(name)
    model(ONES)
    model.eval()
    ema, expected = EMA(model, decay=0.0), model(ONES)
    torch.testing.assert_close(ema.module(ONES), expected)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    ema.update(model)
    torch.testing.assert_close(ema.module(ONES), model(ONES))


def test_models_without_a_copy() -> None:
    """Lazy models, and those that hold what cannot be copied, are refused with what to do."""
    with pytest.raises(ValueError, match=r"0.weight has no shape yet: run one batch through"):
        EMA(nn.Sequential(nn.LazyLinear(2)))
    model: Any = nn.Linear(3, 2)
    model.source = (number for number in range(3))
    with pytest.raises(ValueError, match=r"a Linear cannot be copied .*generator.*: make its aver"):
        EMA(model)
