"""Ranks, process groups and collectives; with one process and no group, all of it is right too."""

from batteries.distributed.collectives import all_gather as all_gather
from batteries.distributed.collectives import all_reduce as all_reduce
from batteries.distributed.collectives import barrier as barrier
from batteries.distributed.collectives import broadcast as broadcast
from batteries.distributed.collectives import together as together
from batteries.distributed.joining import setup as setup
from batteries.distributed.launch import is_main as is_main
from batteries.distributed.launch import local_rank as local_rank
from batteries.distributed.launch import rank as rank
from batteries.distributed.launch import world_size as world_size
from batteries.distributed.per_rank import PerRank as PerRank
from batteries.distributed.rank_zero import rank_zero_first as rank_zero_first
from batteries.distributed.rank_zero import rank_zero_only as rank_zero_only
