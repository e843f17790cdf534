"""Ranks, process groups and collectives, which also work in one process without a group."""

from batteries import _public
from batteries.distributed._collectives import all_gather, all_reduce, barrier, broadcast, together
from batteries.distributed._groups import Group
from batteries.distributed._joining import setup
from batteries.distributed._launch import is_main, local_rank, rank, world_size
from batteries.distributed._per_rank import PerRank
from batteries.distributed._rank_zero import rank_zero_first, rank_zero_only

__all__ = [
    "Group",
    "PerRank",
    "all_gather",
    "all_reduce",
    "barrier",
    "broadcast",
    "is_main",
    "local_rank",
    "rank",
    "rank_zero_first",
    "rank_zero_only",
    "setup",
    "together",
    "world_size",
]
_public.own(globals())
