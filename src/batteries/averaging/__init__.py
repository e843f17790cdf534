"""Averages of weights: EMA and SWA while training, of checkpoint files after it."""

from batteries.averaging.batch_norm import update_bn as update_bn
from batteries.averaging.checkpoints import average_checkpoints as average_checkpoints
from batteries.averaging.checkpoints import best_checkpoints as best_checkpoints
from batteries.averaging.checkpoints import save_average as save_average
from batteries.averaging.running import EMA as EMA
from batteries.averaging.running import SWA as SWA
from batteries.averaging.soup import Decision as Decision
from batteries.averaging.soup import Soup as Soup
from batteries.averaging.soup import greedy_soup as greedy_soup
