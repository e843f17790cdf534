"""Averages of weights: EMA and SWA during training, averages of checkpoint files after it."""

from batteries import _public
from batteries.averaging._batch_norm import update_bn
from batteries.averaging._checkpoints import average_checkpoints, best_checkpoints, save_average
from batteries.averaging._running import EMA, SWA
from batteries.averaging._soup import Decision, Soup, greedy_soup

__all__ = [
    "Decision",
    "EMA",
    "SWA",
    "Soup",
    "average_checkpoints",
    "best_checkpoints",
    "greedy_soup",
    "save_average",
    "update_bn",
]
_public.own(globals())
