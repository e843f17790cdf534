"""Averages of weights: EMA and SWA while training, of checkpoint files after it."""

from batteries.averaging._batch_norm import update_bn as update_bn
from batteries.averaging._checkpoints import average_checkpoints as average_checkpoints
from batteries.averaging._checkpoints import best_checkpoints as best_checkpoints
from batteries.averaging._checkpoints import save_average as save_average
from batteries.averaging._running import EMA as EMA
from batteries.averaging._running import SWA as SWA
from batteries.averaging._soup import Decision as Decision
from batteries.averaging._soup import Soup as Soup
from batteries.averaging._soup import greedy_soup as greedy_soup
