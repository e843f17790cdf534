"""Saves in the background: a checkpoint is copied to host memory, and a thread writes it."""

from __future__ import annotations

import queue
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from batteries._processes import call_at_end
from batteries._warnings import warn
from batteries.checkpoint._contents import plain_or_refused, rebuilt
from batteries.checkpoint._write import formed, is_plain, storage_bytes

Save = Callable[[Any], None]  # takes the copy of a checkpoint
_Jobs = queue.SimpleQueue[Callable[[], object] | None]  # its put is safe in a finalizer


class BackgroundWriter:
    """Writes copies of checkpoints in order. While one is written, at most one more waits.

    `submit` copies the checkpoint into memory that later checkpoints use again. If there are two
    copies already, `submit` waits until the first is written. A warning says so once. Every
    submitted checkpoint is written, even if the writer is dropped without `close`, or the program
    ends.
    """

    # The thread refers to the jobs, and a job refers to the writer. So an idle thread keeps no
    # writer alive, and a dropped writer lives until its checkpoints are written.

    def __init__(self) -> None:
        self._buffers: queue.SimpleQueue[_Buffers] = queue.SimpleQueue()
        for _ in range(2):
            self._buffers.put(_Buffers())
        self._jobs: _Jobs = queue.SimpleQueue()
        self._errors: list[BaseException] = []
        self._told = False
        self._thread = threading.Thread(
            target=_work, args=(self._jobs,), name="checkpoints", daemon=True
        )
        self._thread.start()
        self._cancel_exit = call_at_end(partial(_close, weakref.ref(self)))

    def submit(self, checkpoint: Any, save: Save) -> None:
        """Copy a checkpoint and queue its save. Raises the error of an earlier save."""
        self._raise()
        if not self._thread.is_alive():
            raise RuntimeError(
                "the manager is closed and saves no more checkpoints: call close() after the last "
                "save; in a forked process, make a new CheckpointManager"
            )
        try:
            buffers = self._buffers.get_nowait()
        except queue.Empty:
            if not self._told:
                self._told = True
                warn(
                    "checkpoints are made faster than they can be written: training waits for the "
                    "disk; save less often, or to a faster disk",
                )
            buffers = self._buffers.get()
        try:
            copy = buffers.copy(checkpoint)
        except BaseException:
            self._buffers.put(buffers)
            raise
        self._jobs.put(partial(self._write, copy, buffers, save))

    def wait(self) -> None:
        if self._thread.is_alive():
            written = threading.Event()
            self._jobs.put(written.set)
            written.wait()
        self._raise()

    def close(self) -> None:
        """Write everything and end the thread. Calling it again has no effect."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()
        self._cancel_exit()
        self._raise()

    def _raise(self) -> None:
        if self._errors:
            raise self._errors.pop(0)

    def __del__(self) -> None:
        self._jobs.put(None)  # the queue is empty, and this may run in the thread itself
        self._cancel_exit()
        self._raise()  # if no call has raised the error, python prints it here

    def _write(self, copy: Any, buffers: _Buffers, save: Save) -> None:
        try:
            buffers.finish()
            save(copy)
        except BaseException as error:
            self._errors.append(_without_frames(error))
        finally:
            self._buffers.put(buffers)


class _InTheThread(Exception):  # noqa: N818 (it is shown as a cause)
    """Where a save failed, as text."""


def _without_frames(error: BaseException) -> BaseException:
    """Replace an error's frames by text. The frames would keep the manager in memory."""
    text = "".join(traceback.format_exception(error))
    error.__traceback__ = error.__context__ = None
    error.__cause__ = _InTheThread(f"\n{text}")
    return error


def _work(jobs: _Jobs) -> None:
    # The thread has the priority of training. With a lower one it could wait for a core while it
    # holds the interpreter's lock, and training would wait with it.
    while (job := jobs.get()) is not None:
        job()
        del job  # it may hold the last reference to the writer


def _close(writer: weakref.ref[BackgroundWriter]) -> None:
    if (there := writer()) is not None:
        there.close()


def _copied_whole(value: Any) -> Tensor:
    """A copy on the CPU of a tensor that is more than its bytes, or consists of other tensors."""
    if not hasattr(type(value), "__tensor_unflatten__"):
        copy: Tensor = value.detach().clone().cpu()
        return copy
    names, context = value.__tensor_flatten__()  # some of these cannot be cloned
    parts = {name: _copied_whole(getattr(value, name)) for name in names}
    whole: Tensor = type(value).__tensor_unflatten__(parts, context, value.size(), value.stride())
    return whole


class _Buffers:
    """Host memory for one checkpoint. The next one of the same sizes uses it again."""

    def __init__(self) -> None:
        self._memory: list[Tensor] = []
        self._copied: list[torch.cuda.Event] = []  # one event for each GPU

    def copy(self, checkpoint: Any) -> Any:
        """A copy of the checkpoint in this memory. Copies from a GPU are only queued."""
        rooms: dict[tuple[torch.device, int, int], Tensor] = {}  # by the memory that is copied
        sources: list[Tensor] = []

        def taken(value: Any, place: str) -> Any:
            value = plain_or_refused(value, place)
            if not isinstance(value, Tensor):
                return deepcopy(value)  # its class was passed to add_safe_globals
            if not is_plain(value):
                return _copied_whole(value)
            source = value.untyped_storage()
            key = value.device, source.data_ptr(), source.nbytes()
            if key not in rooms:
                rooms[key] = self._room(len(rooms), source)
                sources.append(storage_bytes(source))
            return formed(rooms[key].untyped_storage(), value)

        copy = rebuilt(checkpoint, taken)
        self._memory = list(rooms.values())
        self._copied = _queue_copies(self._memory, sources)
        return copy

    def finish(self) -> None:
        for copied in self._copied:
            copied.synchronize()

    def _room(self, index: int, source: torch.UntypedStorage) -> Tensor:
        if index < len(self._memory) and self._memory[index].numel() == source.nbytes():
            return self._memory[index]
        pinned = source.device.type == "cuda"
        return torch.empty(source.nbytes(), dtype=torch.uint8, pin_memory=pinned, device="cpu")


def _queue_copies(rooms: list[Tensor], sources: list[Tensor]) -> list[torch.cuda.Event]:
    """Copy. Copies from a GPU are only queued, and complete when that GPU's event is complete."""
    by_device: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}
    for room, source in zip(rooms, sources, strict=True):
        by_device.setdefault(source.device, []).append((room, source))
    events = []
    for device, pairs in by_device.items():
        theirs, ours = [room for room, _ in pairs], [source for _, source in pairs]
        if device.type == "cuda":
            with _side_stream(device) as copied:
                torch._foreach_copy_(theirs, ours, non_blocking=True)
            events.append(copied)
        else:  # other devices have no event to wait for
            torch._foreach_copy_(theirs, ours)
    return events


@contextmanager
def _side_stream(device: torch.device) -> Iterator[torch.cuda.Event]:
    """Queue copies on a side stream. Only the next kernels of training wait for them."""
    training = torch.cuda.current_stream(device)
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    side.wait_stream(training)
    with torch.cuda.stream(side):  # this also selects its device
        yield copied
        copied.record(side)
    training.wait_event(copied)
