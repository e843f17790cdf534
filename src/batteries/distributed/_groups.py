"""The ranks of a process group or of a mesh dimension, and their first error."""

from __future__ import annotations

import platform
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary, ref

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from batteries.distributed._launch import in_group, place, rank
from batteries.distributed._waiting import Notes, StoreGoneError, wait_until

Group: TypeAlias = dist.ProcessGroup | DeviceMesh | tuple[DeviceMesh, str] | None
ANY_LEFT = "left/any"  # a key that is set before the first note of a rank that leaves or fails
_TAG = 2**30  # the tag of a message that no rank sends
_LONG = 500  # characters of an error text
# The number of collectives that this rank has begun in each group.
counts: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_lent: list[ref[Tensor]] = []  # tensors that a thread of gloo may still hold


class Ranks(NamedTuple):
    """The ranks of a group, numbered from 0."""

    rank: int  # this process's number in the group
    size: int
    group: Any = None  # a ProcessGroup; None: the world

    @property
    def members(self) -> list[int]:
        """The ranks' numbers in the world."""
        if self.group is None:
            return list(range(self.size))
        return list(dist.get_process_group_ranks(self.group))

    @property
    def name(self) -> str:
        """The group's name, the same on all its ranks."""
        group: Any = self.group or dist.group.WORLD
        return str(group.group_name)


def ranks_of(group: Group = None) -> Ranks:
    """The ranks of what users pass as `group`.

    Raises:
        TypeError: The value is no group and no mesh.
        ValueError: The mesh has several dimensions, or no dimension of that name. Or this process
            is not in the group.
    """
    if group is None:
        return Ranks(*place())
    if isinstance(group, tuple) and len(group) == 2 and isinstance(group[0], DeviceMesh):
        mesh, name = group
        if name not in (mesh.mesh_dim_names or ()):
            raise ValueError(
                f"the mesh has no dimension {name!r}; its dimensions are "
                f"{mesh.mesh_dim_names or 'unnamed'}"
            )
        group = mesh[name]
    own: Any = group
    if isinstance(group, DeviceMesh):
        if group.ndim > 1:
            raise ValueError(
                f"the mesh has {group.ndim} dimensions, {group.mesh_dim_names or 'unnamed'}: pass "
                'one of them, as mesh["dp"] or (mesh, "dp")'
            )
        ours = group.get_coordinate() is not None
        own = group.get_group() if ours else dist.GroupMember.NON_GROUP_MEMBER
    if not isinstance(own, dist.ProcessGroup):
        if own == dist.GroupMember.NON_GROUP_MEMBER:
            raise ValueError(
                f"rank {rank()} is not in the group that it passed: only the group's ranks may "
                "make this call"
            )
        kind = type(own).__name__
        raise TypeError(
            f"group is {'an' if kind[0] in 'aeiou' else 'a'} {kind}; expected a ProcessGroup, a "
            'DeviceMesh of one dimension, or (mesh, "dp")'
        )
    if own is dist.group.WORLD:
        return Ranks(*place())
    return Ranks(dist.get_rank(own), dist.get_world_size(own), own)


def notes() -> Notes:
    """The notes that the ranks of the process group share."""
    return Notes(dist.distributed_c10d._get_default_store())


def timeout() -> float:
    """Seconds that ranks wait for each other: the timeout of `setup`."""
    store: Any = dist.distributed_c10d._get_default_store()
    return float(store.timeout.total_seconds())


def closed(ranks: Ranks) -> list[int]:
    """The ranks to which the connection is closed, by their numbers in the world.

    If a connection closes while a collective begins, gloo may raise nothing, and the collective
    waits until its timeout (3 of 150 kills while 4 MB were sent). The next message on this
    connection raises.
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
    """Close a group's connections. Unfinished collectives end with an error on all ranks.

    A rank that has failed makes no further call. If its connections stayed open, gloo's threads
    would wait for ranks that wait for this rank.
    """
    if in_group() and "gloo" in dist.get_backend_config(ranks.group):
        for other in range(ranks.size):
            with suppress(RuntimeError):
                message = _asked_for(ranks, other)
                if message is not None:  # a wait that times out closes all connections
                    message.wait(timedelta(milliseconds=1))


def _asked_for(ranks: Ranks, other: int) -> Any:
    """Ask for a message that never comes; raises if the connection is closed."""
    if other == ranks.rank:
        return None
    return dist.irecv(torch.empty(1, device="cpu"), group=ranks.group, group_src=other, tag=_TAG)


def lend(*tensors: Tensor) -> None:
    """Remember tensors that gloo holds. Its threads release them shortly after their work."""
    _lent[:] = [lent for lent in _lent if _is_held(lent)]
    _lent.extend(map(ref, tensors))


def take_back(seconds: float) -> bool:
    """Wait until gloo has released all tensors; return whether it has.

    A thread that releases a tensor needs Python's lock. If Python has ended by then, the thread
    aborts the process.
    """
    return wait_until(lambda: not any(map(_is_held, _lent)), seconds)


def _is_held(lent: ref[Tensor]) -> bool:
    tensor = lent()  # the reference is valid even if only gloo holds the tensor
    return tensor is not None and int(tensor._use_count()) > 1  # type: ignore[attr-defined]


class MissingRankError(RuntimeError):
    """Some ranks did not come, or have left. The text says which ranks, and why."""


def first_cause(error: BaseException) -> str:
    """The report of the first rank that ended with an error; no rank waits.

    If the connection to a rank is closed and the rank has left no report, it was killed. Then it is
    the cause of the other errors.
    """
    own = f"rank {rank()} on {platform.node()}: {type(error).__name__}: {error}"[:_LONG]
    if not in_group():
        return own
    says_who = isinstance(error, MissingRankError)  # this rank has then closed its connections
    gone = closed(ranks_of()) if isinstance(error, RuntimeError) and not says_who else []
    try:
        store = notes()
        dead = [other for other in gone if not store.check([f"left/{other}"])]
        if dead:
            hosts = {other: store.get(f"host/{other}") or "an unknown host" for other in dead}
            told = ", ".join(f"rank {other} on {host}" for other, host in hosts.items())
            were_they = "was it" if len(dead) == 1 else "were they"
            own = f"{told} ended without an error message: {were_they} killed?"
        return store.first("left/first", own)
    except StoreGoneError as silent:
        told = ", ".join(f"rank {other}" for other in gone)
        return f"{told} ended, and {silent}" if gone else own


def with_cause(error: BaseException) -> str:
    """An error as text, followed by the first cause if that is another error."""
    own, cause = f"{type(error).__name__}: {error}", first_cause(error)
    if "; the first cause: " in own:
        return own
    return own if own[: _LONG // 2] in cause else f"{own}; the first cause: {cause}"
