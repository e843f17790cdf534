"""Early stopping counts as Keras and Lightning do."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from ranks import run_ranks

from batteries import EarlyStopping, distributed, load_checkpoint, make_checkpoint, save_checkpoint


def stops_at(scores: list[float], **options: Any) -> int | None:
    """The check, from 1, at which it says to stop."""
    stopper = EarlyStopping(**{"metric_minimization": True, **options})
    return next((n for n, score in enumerate(scores, 1) if stopper.step(score)), None)


@pytest.mark.parametrize(
    ("scores", "patience", "expected"),
    [
        ([3, 2, 1, 0], 1, None),
        ([1, 2], 1, 2),
        ([1, 1, 1], 2, 3),  # a plateau is no improvement
        ([1, 2, 2, 0.5, 2, 2], 3, None),  # an improvement begins the count anew
        ([1, 2, 2, 0.5, 2, 2, 2], 3, 7),
        ([1, 2], 0, 2),
        ([math.nan, math.nan, math.nan], 3, 3),
        ([math.nan, 1, math.nan, 0.5], 2, None),
        ([-math.inf, 1, 2, 2], 2, 4),
    ],
)
def test_counting(scores: list[float], patience: int, expected: int | None) -> None:
    """It stops after `patience` checks in a row without an improvement, whatever they are."""
    assert stops_at(scores, patience=patience) == expected
    mirrored = [-score for score in scores]
    assert stops_at(mirrored, patience=patience, metric_minimization=False) == expected


def test_min_delta() -> None:
    """A gain of just `min_delta` is no improvement, and small gains add up against the best."""
    assert stops_at([1, 0.5, 0.0], patience=1, min_delta=0.5) == 2
    assert stops_at([1, 0.75, 0.25], patience=2, min_delta=0.5) is None


def test_the_best() -> None:
    """NaN and infinities never become the best score."""
    stopper = EarlyStopping(metric_minimization=True)
    scores: list[Any] = [math.nan, math.inf, torch.tensor(0.5), -math.inf, 0.7]
    for score in scores:
        stopper(score)
    assert (stopper.best_score, stopper.best_epoch) == (0.5, 3)


def test_resume() -> None:
    """Restored from a checkpoint at any check, it stops at the same one."""
    scores = [random.Random(0).random() for _ in range(30)]
    expected = stops_at(scores)
    stopper = EarlyStopping(metric_minimization=True)
    for number, score in enumerate(scores, 1):
        save_checkpoint(
            make_checkpoint("train", 1, torch.nn.Linear(1, 1), stopper=stopper), "a.pth"
        )
        stopper = EarlyStopping(metric_minimization=True)
        load_checkpoint("a.pth", stopper=stopper)
        if stopper.step(score):
            assert number == expected
            return
    raise AssertionError("it did not stop")


def decide() -> list[bool]:
    stopper = EarlyStopping(1, metric_minimization=True)
    return [stopper.step(score + distributed.rank()) for score in (0.5, 0.4, 0.4)]


def test_ranks_decide_alike() -> None:
    """Ranks that measured different scores stop at the same check: rank 0's decides."""
    assert run_ranks(decide) == [[False, False, True]] * 2


@pytest.mark.parametrize("bad", [{"patience": -1}, {"min_delta": -0.1}, {"min_delta": math.nan}])
def test_bad_numbers(bad: dict[str, Any]) -> None:
    """Numbers that make no sense are refused."""
    with pytest.raises(ValueError, match=f"{next(iter(bad))} is .*; expected 0 or more"):
        EarlyStopping(**bad, metric_minimization=True)


def decide_with_the_score_of_rank_zero() -> bool:
    return EarlyStopping(0, metric_minimization=True).step(0.5 if distributed.is_main() else None)


def test_scores_of_rank_zero_alone() -> None:
    """The other ranks need no score."""
    assert run_ranks(decide_with_the_score_of_rank_zero) == [False, False]


def test_a_run_that_has_stopped() -> None:
    """`stopped` is what the last check said, also in an object that has loaded the state."""
    for patience in (0, 1, 2):
        stopper = EarlyStopping(patience, metric_minimization=True)
        assert not stopper.stopped
        for score in (3.0, 2.0, 2.0, math.nan):
            said = stopper.step(score)
            again = EarlyStopping(patience, metric_minimization=True)
            again.load_state_dict(stopper.state_dict())
            assert stopper.stopped == again.stopped == said
