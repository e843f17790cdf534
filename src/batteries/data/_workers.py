"""Inside a worker: what the dataset reads of its worker, and errors that reach the program."""

from __future__ import annotations

import gc
import multiprocessing.queues
import pickle
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch._utils import ExceptionWrapper
from torch.utils.data import get_worker_info
from torch.utils.data._utils.worker import WorkerInfo

from batteries.data._failing import Failed

asked: set[str] = set()  # attributes of `get_worker_info()` that were read since the last clear()
_WATCHED = {"id", "num_workers", "dataset"}

_paused = False  # whether `without_collection` has switched the collector off; forks inherit it


class _Watched(WorkerInfo):
    """The result of `get_worker_info`, which notes the attributes that are read."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        if name in _WATCHED:
            asked.add(name)
        return super().__getattribute__(name)


def change_worker(**values: Any) -> None:
    """Let `get_worker_info` return the user's dataset and not our wrapper."""
    info = get_worker_info()
    if info is not None:
        for name, value in values.items():
            object.__setattr__(info, name, value)
        object.__setattr__(info, "__class__", _Watched)


def leaked_by(end: StopIteration) -> str | None:
    """The name of the function that raised a StopIteration; None if an iterator has ended."""
    names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(end.__traceback__)][1:]
    return names[0] if names and not {"__next__", "next"} & {*names} else None


@contextmanager
def without_collection() -> Iterator[None]:
    """Collect no garbage in workers that are forked in the block, until `leave_garbage`.

    Iterators of earlier passes may be garbage of the program. Their end needs a lock that another
    thread may have held during the fork, so a worker that collects them can wait for ever.
    """
    global _paused
    if not gc.isenabled():
        yield
        return
    gc.disable()
    _paused = True
    try:
        yield
    finally:
        _paused = False
        gc.enable()


def leave_garbage() -> None:
    """Let a worker collect its own garbage, and never that of the program."""
    gc.freeze()
    if _paused:
        gc.enable()


def report_what_cannot_be_sent() -> None:
    """Send an error in place of a batch or an error that cannot be pickled.

    Otherwise the sending thread prints a traceback, and the program waits for ever.
    """
    multiprocessing.queues.Queue._on_queue_feeder_error = _send_error  # type: ignore[attr-defined]


def sendable(failed: Failed) -> Any:
    """In a worker, an error that a queue can carry. Outside of workers, the error itself."""
    info = get_worker_info()
    if info is None:
        return failed
    where, wrapper = f"in DataLoader worker process {info.id}", cast(Any, ExceptionWrapper)
    try:
        failed.throw()
    except Exception as error:
        told = wrapper((type(error), error, error.__traceback__), where)
    try:
        pickle.dumps(told)
    except Exception:  # its class cannot be sent
        told = wrapper((RuntimeError, RuntimeError(told.exc_msg), None), where)
    return told


def received(sent: Any) -> Any:
    """A `Failed` for an error that `sendable` made; anything else unchanged."""
    if not isinstance(sent, ExceptionWrapper):
        return sent
    try:
        sent.reraise()  # type: ignore[no-untyped-call]
    except Exception as error:
        return Failed(error, bare=True)


def _send_error(queue: Any, error: Exception, what: Any) -> None:
    if not (isinstance(what, tuple) and len(what) == 2 and isinstance(what[0], int)):
        traceback.print_exception(error)  # the user's own queue
        return
    number, batch = what
    if isinstance(batch, ExceptionWrapper):  # an error whose class cannot be sent
        text = f"an error in a worker: {batch.exc_msg}"
    else:
        lines = "".join(traceback.format_exception(error))
        text = (
            f"a worker could not send a batch, a {type(batch).__name__}: let the dataset and "
            f"collate_fn return only what pickle can copy. {lines}"
        )
    wrapper: Any = ExceptionWrapper
    told = RuntimeError(text)
    # First in the queue: after the stream's end, torch does not read from this worker.
    with queue._notempty:
        queue._sem.acquire(False)
        wrapped = wrapper((RuntimeError, told, None), "in a DataLoader worker")
        queue._buffer.appendleft((number, wrapped))
