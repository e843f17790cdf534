"""Steps that are not taken: on all ranks alike, counted, and never for ever."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import nn

from batteries import accumulate, distributed
from batteries.training import StepPolicy


def decisions(policy: StepPolicy, norms: list[float]) -> list[bool]:
    return [policy.accepts(torch.tensor(norm)) for norm in norms]


def test_spikes() -> None:
    """A norm above k times the running median is left out, and a lasting change is followed."""
    policy = StepPolicy("skip", spike=3.0, history=5)
    assert decisions(policy, [9.0, 1.0, 1.0, 1.0, 1.0]) == [True] * 5  # the first are not judged
    assert decisions(policy, [2.9, 3.1, math.inf, 1.0]) == [True, False, False, True]
    assert decisions(policy, [50.0] * 6) == [False] * 3 + [True] * 3
    assert policy.skipped == {"not finite": 1, "spike": 4}


def test_it_goes_on_where_it_was() -> None:
    """A policy that loads another's state decides as that one does."""
    one, other = (StepPolicy("skip", spike=2.0, history=3, at_most=2) for _ in range(2))
    decisions(one, [1.0, 1.0, 1.0, math.nan, 9.0])
    other.load_state_dict(one.state_dict())
    for policy in (one, other):
        with pytest.raises(FloatingPointError, match=r"step 6 .* is inf, and 2 steps before it "):
            policy.accepts(math.inf)
        assert policy.skipped == {"not finite": 1, "spike": 1}


def test_the_error_of_a_spike() -> None:
    """The error has the norms that are compared, and the skipped steps before it, if there are."""
    told = r"step 4 is not taken: the norm 8 is above 3 times the median of the 3 norms before it"
    for at_most, more in {0: "", 1: ", and the step before it was skipped"}.items():
        policy = StepPolicy("skip", spike=3.0, history=3, at_most=at_most)
        decisions(policy, [1.0] * 3)
        for number in range(at_most):
            assert not policy.accepts(7.0 + number)
        with pytest.raises(FloatingPointError) as error:
            policy.accepts(8.0)
        assert str(error.value).startswith(f"{told.replace('4', str(4 + at_most))}{more}. Resume")


def on_ranks() -> tuple[list[bool], str]:
    rank = distributed.rank()
    policy = StepPolicy("skip", spike=2.0, history=2)
    losses = [1.0, 1.0, math.nan if rank == 1 else 1.0, 1.0]
    norms = [1.0, 1.0, 1.0, math.nan if rank == 0 else 1.0]
    found = [policy.accepts(*pair) for pair in zip(norms, losses, strict=True)]
    found += [policy.accepts(3.0 if rank == 0 else 1.9)]  # bits may differ: their mean decides
    with pytest.raises(FloatingPointError) as told:
        StepPolicy("raise").accepts(torch.tensor(0.5), torch.tensor(losses[2]))
    return found, str(told.value)


def test_ranks_decide_alike() -> None:
    """What is not finite on one rank is so for all, and the error says on which."""
    for found, told in run_ranks(on_ranks):
        assert found == [True, True, False, False, False]
        assert "step 1 is not taken: on rank 1 the norm is 0.5, the loss nan. Resume" in told


def test_with_a_scaler() -> None:
    """Gradients that overflow are the scaler's; after a skipped step the next is unscaled again."""
    model: Any = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    policy = StepPolicy("skip", spike=2.0, history=2, scaler=scaler)
    stepped, norms = [], []
    for x, window in accumulate([torch.full((1, 2), v) for v in (16, 0.1, 0.1, 4, 0.1)], model,
                                scaler=scaler):  # fmt: skip
        optimizer.zero_grad()
        loss = model(x.float()).sum() / 4
        window.backward(loss)
        norms.append(window.clip(optimizer, math.inf).item())
        stepped.append(policy.accepts(norms[-1], loss) and window.step(optimizer))
    assert stepped == [False, True, True, False, True]
    assert policy.skipped == {"not finite": 0, "spike": 1}
    assert norms[-1] == pytest.approx(norms[1])  # not scaled


@pytest.mark.parametrize("wrong", [{"action": "no"}, {"spike": 1.0}, {"history": 0}])
def test_what_is_no_policy(wrong: dict[str, Any]) -> None:
    """An unknown action, a factor of 1 or no history is an error that says what was expected."""
    with pytest.raises(ValueError, match="; expected"):
        StepPolicy(**wrong)
