"""Inside a worker: how it begins, what it is asked, and what becomes of what it cannot send."""

from __future__ import annotations

import multiprocessing.queues
import pickle
import traceback
from typing import Any, cast

from torch._utils import ExceptionWrapper
from torch.utils.data import get_worker_info
from torch.utils.data._utils.worker import WorkerInfo

from batteries.data._failing import Failed

asked: set[str] = set()  # attributes of `get_worker_info()` that were read since it was cleared
_WATCHED = {"id", "num_workers", "dataset"}


class _Watched(WorkerInfo):
    """What `get_worker_info` returns, however it was imported, noting what is read of it."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        if name in _WATCHED:
            asked.add(name)
        return super().__getattribute__(name)


def change_worker(**values: Any) -> None:
    """Let `get_worker_info` tell the truth about a dataset that is read through a wrapper."""
    info = get_worker_info()
    if info is not None:
        for name, value in values.items():
            object.__setattr__(info, name, value)
        object.__setattr__(info, "__class__", _Watched)


class ends_nothing:  # noqa: N801  # contextlib's own lets a StopIteration through
    """Make a StopIteration of the user's an error: torch takes it for the end of the epoch."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, StopIteration):
            raise stopped(self._name) from error


def stopped(name: str) -> RuntimeError:
    """The error for a StopIteration that is not the end of the epoch."""
    return RuntimeError(
        f"{name} raised StopIteration, which would have ended the epoch as if it were complete; "
        "an iterator inside it, taken from with next(), may be exhausted"
    )


def leaked_by(end: StopIteration) -> str | None:
    """The function of a transform that raised a StopIteration; None of an iterator's own end."""
    names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(end.__traceback__)][1:]
    return names[0] if names and not {"__next__", "next"} & {*names} else None


def report_what_cannot_be_sent() -> None:
    """Send an error in place of a batch, or of an error, that cannot be pickled.

    The thread that sends would print a traceback and drop it, and the program wait for ever.
    """
    multiprocessing.queues.Queue._on_queue_feeder_error = _send_error  # type: ignore[attr-defined]


def sendable(failed: Failed) -> Any:
    """An error as it comes through a queue; outside of a worker as it is."""
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
    """What `sendable` made, as an error that can be thrown again; all else as it is."""
    if not isinstance(sent, ExceptionWrapper):
        return sent
    try:
        sent.reraise()  # type: ignore[no-untyped-call]
    except Exception as error:
        return Failed(error, bare=True)


def _send_error(queue: Any, error: Exception, what: Any) -> None:
    if not (isinstance(what, tuple) and len(what) == 2 and isinstance(what[0], int)):
        traceback.print_exception(error)  # a queue of the user's
        return
    number, batch = what
    if isinstance(batch, ExceptionWrapper):  # an error whose class cannot be sent
        text = f"an error in a worker: {batch.exc_msg}"
    else:
        lines = "".join(traceback.format_exception(error))
        text = f"a worker could not send a batch, a {type(batch).__name__}: {lines}"
    wrapper: Any = ExceptionWrapper
    told = RuntimeError(text)
    # In its place: behind the end of its stream, torch no longer listens to this worker.
    with queue._notempty:
        queue._sem.acquire(False)
        queue._buffer.appendleft(
            (number, wrapper((RuntimeError, told, None), "in a DataLoader worker"))
        )
