"""Ranks, process groups and collectives; with one process and no group, all of it is right too."""

from batteries.distributed._collectives import all_gather as all_gather
from batteries.distributed._collectives import all_reduce as all_reduce
from batteries.distributed._collectives import barrier as barrier
from batteries.distributed._collectives import broadcast as broadcast
from batteries.distributed._collectives import together as together
from batteries.distributed._joining import setup as setup
from batteries.distributed._launch import is_main as is_main
from batteries.distributed._launch import local_rank as local_rank
from batteries.distributed._launch import rank as rank
from batteries.distributed._launch import world_size as world_size
from batteries.distributed._per_rank import PerRank as PerRank
from batteries.distributed._rank_zero import rank_zero_first as rank_zero_first
from batteries.distributed._rank_zero import rank_zero_only as rank_zero_only
