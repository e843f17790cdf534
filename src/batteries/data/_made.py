"""Which loader of the program this is, and whether the other ranks have made the same one."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from batteries._seeding import is_made_again, next_number
from batteries._warnings import warn
from batteries.distributed._agreement import check_same, place
from batteries.distributed._groups import Ranks

_made: Counter[Any] = Counter()  # loaders, by their places in the program and their ranks


class Made(NamedTuple):
    """Where the program has made a loader, and how many it had made there for the same ranks."""

    at: str
    number: int


def made_here(members: tuple[int, ...]) -> Made:
    at = place()
    _made[at, members] += 1
    return Made(at, _made[at, members])


def unseeded_number(made: Made, in_step: bool, members: tuple[int, ...]) -> int:
    """A count of the loaders that the same ranks make without a seed.

    Warns of a place that makes a loader again after a checkpoint, as in a loop over rounds.
    """
    if in_step and is_made_again(made.at):
        warn(
            f"{made.at.partition(',')[0]} makes a loader again, after a checkpoint. Its order "
            "depends on the number of loaders made before it, so a run that resumes after this "
            "checkpoint gets other batches: pass seed=, such as the number of the round",
        )
    return next_number((in_step, members))


def check_same_loader(made: Made, what: list[str], ranks: Ranks) -> None:
    """Raise if another rank divides other samples, or has another order of them."""
    check_same(
        f"the loader made at {made.at}",
        ", ".join(what),
        "the ranks would read some samples twice and others never: call seed_all with the same "
        "seed on all ranks, and make the same loaders on all of them; or pass seed=",
        f"{ranks.name}/{made.at}/{made.number}",
    )


def warn_of_repeats(count: int, again: bool, length: int) -> None:
    """Warn that a pass was left after `count` batches, the second time or where it was saved."""
    why = (
        f"the last two passes over the loader were left after the same {count} batches, and this "
        "pass begins with them again"
        if again
        else f"the last pass over the loader was left after {count} batches, and its state was "
        "saved there. This pass begins with the same batches again, but a run that resumes from "
        "this state goes on after them"
    )
    remedy = (
        "a pass ends only if the loop asks for one more batch: use a for loop, or "
        "zip(..., strict=True) for two loaders"
        if count == length
        else f"pass batches_per_pass={count} if each pass should go on where the last one stopped"
    )
    warn(
        f"{why}: {remedy}",
    )
