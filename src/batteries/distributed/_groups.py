"""Some of the ranks: a process group, or a dimension of a mesh; the world where none is named."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary, ref

import torch
import torch.distributed as dist
from torch import Tensor

from batteries.distributed._launch import in_group, rank, world_size
from batteries.distributed._waiting import Notes, wait_until

Group: TypeAlias = Any  # a ProcessGroup, a DeviceMesh of one dimension, (mesh, "dp"), or None
ANY_LEFT = "left/any"  # is there before the note of the first rank that leaves, or has failed
_TAG = 2**30  # of a message that nobody sends
# How many things the ranks of each group have begun to do together, as seen here.
counts: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_lent: list[ref[Tensor]] = []  # tensors that a thread of gloo may still have


class Ranks(NamedTuple):
    """Processes that do something together, numbered from 0."""

    rank: int  # of this process among them
    size: int
    group: Any = None  # a ProcessGroup; None: the world

    @property
    def members(self) -> list[int]:
        """Their numbers in the world."""
        if self.group is None:
            return list(range(self.size))
        return list(dist.get_process_group_ranks(self.group))

    @property
    def name(self) -> str:
        """The same on all of them, and another one than that of other groups."""
        group: Any = self.group or dist.group.WORLD
        return str(group.group_name)


def ranks_of(group: Group = None) -> Ranks:
    """The ranks that a group means, and which of them this process is.

    Args:
        group: A `ProcessGroup`, a `DeviceMesh` of one dimension, or a mesh and the name of its
            dimension, `(mesh, "dp")`. Default: all ranks.

    Raises:
        TypeError: Something else.
        ValueError: A mesh of several dimensions, or one that has no dimension of that name; a
            group in which this process is not.
    """
    if group is None:
        return Ranks(rank(), world_size())
    if isinstance(group, tuple):
        mesh, name = group
        if name not in (mesh.mesh_dim_names or ()):
            raise ValueError(f"the mesh has dimensions {mesh.mesh_dim_names}, and not {name!r}")
        group = mesh[name]
    if hasattr(group, "get_group"):  # a DeviceMesh, whose class takes long to import
        if group.ndim > 1:
            raise ValueError(
                f"the mesh has {group.ndim} dimensions, {group.mesh_dim_names}: pass one of them, "
                'as mesh["dp"] or (mesh, "dp")'
            )
        own = group.get_coordinate() is not None
        group = group.get_group() if own else dist.GroupMember.NON_GROUP_MEMBER
    if not isinstance(group, dist.ProcessGroup):
        if group == dist.GroupMember.NON_GROUP_MEMBER:
            raise ValueError(
                f"rank {rank()} is not in the group that it passed: only the group's ranks use it"
            )
        raise TypeError(
            f"group is a {type(group).__name__}; expected a ProcessGroup, a DeviceMesh of one "
            'dimension, or (mesh, "dp")'
        )
    if group is dist.group.WORLD:
        return Ranks(rank(), world_size())
    return Ranks(dist.get_rank(group), dist.get_world_size(group), group)


def notes() -> Notes:
    """Where ranks leave word for each other, in a process group."""
    return Notes(dist.distributed_c10d._get_default_store())


def timeout() -> float:
    """Seconds that ranks wait for each other: `setup` was told, or torch has its own."""
    store: Any = dist.distributed_c10d._get_default_store()
    return float(store.timeout.total_seconds())


def closed(ranks: Ranks) -> list[int]:
    """The ranks to whom the connection is closed, by their numbers in the world.

    Of a connection that closes while a collective begins, gloo may tell nothing: the collective
    then waits to its timeout (3 of 150 kills while 4 MB travelled). It tells at the next message.
    """
    found = []
    if in_group() and "gloo" in dist.get_backend_config(ranks.group):
        for other, number in enumerate(ranks.members):
            try:
                _asked_for(ranks, other)
            except RuntimeError:
                found.append(number)
    return found


def break_off(ranks: Ranks) -> None:
    """Close a group's connections: what is under way ends with an error, here and elsewhere.

    A rank that has failed does not come again. Without this, gloo's threads go on with what was
    begun, and wait for ranks that wait for this one.
    """
    if in_group() and "gloo" in dist.get_backend_config(ranks.group):
        for other in range(ranks.size):
            with suppress(RuntimeError):
                message = _asked_for(ranks, other)
                if message is not None:  # a wait that ends early closes all connections
                    message.wait(timedelta(milliseconds=1))


def _asked_for(ranks: Ranks, other: int) -> Any:
    """A message that never comes; the error of a connection that is closed."""
    if other == ranks.rank:
        return None
    return dist.irecv(torch.empty(1), group=ranks.group, group_src=other, tag=_TAG)


def lend(*tensors: Tensor) -> None:
    """Note that gloo has these tensors: its threads let go of them a moment after their work."""
    _lent[:] = [lent for lent in _lent if _is_held(lent)]
    _lent.extend(map(ref, tensors))


def take_back(seconds: float) -> bool:
    """Whether gloo has let go of all tensors in time.

    A thread that lets go of a tensor needs Python's lock. If Python has ended by then, the thread
    aborts the process.
    """
    return wait_until(lambda: not any(map(_is_held, _lent)), seconds)


def _is_held(lent: ref[Tensor]) -> bool:
    tensor = lent()  # it is still there where gloo alone has it
    return tensor is not None and int(tensor._use_count()) > 1  # type: ignore[attr-defined]
