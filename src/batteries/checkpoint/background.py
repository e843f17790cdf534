"""Saves that training does not wait for: copies in host memory, written by another thread."""

from __future__ import annotations

import atexit
import os
import queue
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from batteries.checkpoint.archive import form_of, formed, is_plain, storage_bytes
from batteries.checkpoint.contents import plain_or_refused, rebuilt

Save = Callable[[Any], None]  # takes the copy of a checkpoint


class BackgroundWriter:
    """Writes copies of checkpoints in order, at most one at a time and one waiting.

    >>> with BackgroundWriter() as writer:
    ...     writer.submit({"epoch": 1}, print)
    {'epoch': 1}

    The third checkpoint waits until the first one is written, and says so once. What is
    submitted is copied before `submit` returns, into memory that is used again. At the end of the
    program everything is written.
    """

    def __init__(self) -> None:
        self._buffers: queue.SimpleQueue[_Buffers] = queue.SimpleQueue()
        for _ in range(2):
            self._buffers.put(_Buffers())
        self._jobs: queue.Queue[tuple[Any, _Buffers, Save] | None] = queue.Queue()
        self._errors: list[BaseException] = []
        self._told = False
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def submit(self, checkpoint: Any, save: Save) -> None:
        """Copy a checkpoint, and let it be saved.

        Raises:
            TypeError: A value that cannot be saved, with its place.
            RuntimeError: It was closed.
            Exception: The error of an earlier save.
        """
        self._raise()
        if not self._thread.is_alive():
            raise RuntimeError("a checkpoint was to be saved after close(): close at the end")
        try:
            buffers = self._buffers.get_nowait()
        except queue.Empty:
            if not self._told:
                self._told = True
                warnings.warn(
                    "checkpoints are made faster than they can be written: training waits for the "
                    "disk; save less often, or to a faster one",
                    stacklevel=4,
                )
            buffers = self._buffers.get()
        try:
            copy = buffers.copy(checkpoint)
        except BaseException:
            self._buffers.put(buffers)
            raise
        self._jobs.put((copy, buffers, save))

    def wait(self) -> None:
        """Return when everything is written.

        Raises:
            Exception: The error of a save.
        """
        self._jobs.join()
        self._raise()

    def close(self) -> None:
        """Write everything and end the thread; to be called once more does nothing.

        Raises:
            Exception: The error of a save.
        """
        atexit.unregister(self.close)
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()
        self._raise()

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _raise(self) -> None:
        if self._errors:
            raise self._errors.pop(0)

    def _run(self) -> None:
        _let_training_go_first()
        while (job := self._jobs.get()) is not None:
            copy, buffers, save = job
            try:
                save(buffers.finish(copy))
            except BaseException as error:
                self._errors.append(error)
            finally:
                del job, copy
                self._buffers.put(buffers)
                self._jobs.task_done()
        self._jobs.task_done()


def _let_training_go_first() -> None:
    """Give way where every core trains: on Linux a thread has a priority of its own."""
    if sys.platform == "linux":
        me = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, me, os.getpriority(os.PRIO_PROCESS, me) + 10)


class _Copied:
    """A tensor in other memory, to be made of it when nobody waits."""

    __slots__ = ("_form", "_room")

    def __init__(self, tensor: Tensor, room: Tensor) -> None:
        self._form = form_of(tensor)
        self._room = room

    def tensor(self) -> Tensor:
        return formed(self._room.untyped_storage(), self._form)


class _Buffers:
    """Host memory for one checkpoint, used again for the next one of the same sizes."""

    def __init__(self) -> None:
        self._memory: list[Tensor] = []
        self._copied: torch.cuda.Event | None = None

    def copy(self, checkpoint: Any) -> Any:
        """The same checkpoint in this memory; on a GPU the copies are only queued.

        Raises:
            TypeError: A value that cannot be saved, with its place.
        """
        rooms: dict[tuple[torch.device, int, int], Tensor] = {}  # by the memory that is copied
        sources: list[Tensor] = []

        def taken(value: Any, place: str) -> Any:
            value = plain_or_refused(value, place)
            if not isinstance(value, Tensor):
                return value
            if not is_plain(value):
                return value.detach().clone().cpu()
            source = value.untyped_storage()
            key = value.device, source.data_ptr(), source.nbytes()
            if key not in rooms:
                rooms[key] = self._room(len(rooms), source)
                sources.append(storage_bytes(source))
            return _Copied(value, rooms[key])

        copy = rebuilt(checkpoint, taken)
        self._memory = list(rooms.values())
        with _side_stream() as self._copied:
            if sources:
                torch._foreach_copy_(self._memory, sources, non_blocking=True)
        return copy

    def finish(self, copy: Any) -> Any:
        """The checkpoint whose copy is complete."""
        if self._copied is not None:
            self._copied.synchronize()
        return rebuilt(copy, lambda value, _: value.tensor() if type(value) is _Copied else value)

    def _room(self, index: int, source: torch.UntypedStorage) -> Tensor:
        if index < len(self._memory) and self._memory[index].numel() == source.nbytes():
            return self._memory[index]
        pinned = source.device.type == "cuda"
        return torch.empty(source.nbytes(), dtype=torch.uint8, pin_memory=pinned)


@contextmanager
def _side_stream() -> Iterator[torch.cuda.Event | None]:
    """Queue copies beside the training; its next kernels wait for them, the program does not."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        yield None
        return
    training = torch.cuda.current_stream()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    side.wait_stream(training)
    with torch.cuda.stream(side):
        yield copied
        copied.record(side)
    training.wait_event(copied)
