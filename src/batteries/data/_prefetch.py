"""Batches that are on the device before the loop asks for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from batteries._device import known_device, moved_by, to_device
from batteries.data._failing import Failed

Came = tuple[Any, Any]  # a batch or `Failed`, and what else is known of it


class Prefetch:
    """Moves the batches of a pass to a device, if the user named one.

    Unless the device is the CPU, one batch is moved ahead.
    """

    def __init__(self, to: torch.device | str | int | None) -> None:
        self._device = None if to is None else known_device(to)
        self._kind = "" if self._device is None else self._device.type
        self.pins = self._kind == "cuda"

    def __reduce__(self) -> Any:  # a stream cannot be sent
        return Prefetch, (self._device,)

    @cached_property
    def _side(self) -> torch.cuda.Stream:
        """The stream of the copies: one for all passes, since each stream has its own memory."""
        return torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def __call__(self, batches: Iterator[Came]) -> Iterator[Came]:
        """The same batches on the device. An error comes after the batches before it."""
        return self._moved(batches) if self._device else batches

    def _moved(self, batches: Iterator[Came]) -> Iterator[Came]:
        ahead = 0 if self._kind == "cpu" else 1
        waiting: deque[Came] = deque()
        failed: Failed | None = None
        while True:
            try:
                batch, more = next(batches)
            except StopIteration:
                break
            except Exception as error:
                failed = Failed(error)
                break
            waiting.append((self._begun(batch), more))
            del batch  # the loop alone keeps it
            if len(waiting) > ahead:
                yield _taken(waiting)
        while waiting:
            yield _taken(waiting)
        if failed is not None:
            failed.throw()

    def _begun(self, batch: Any) -> Any:
        if isinstance(batch, Failed):
            return batch
        try:
            if self._kind == "cuda":
                return _Copies(batch, self._side)
            return to_device(batch, cast(torch.device, self._device))
        except Exception as error:
            return Failed(error)


def _taken(waiting: deque[Came]) -> Came:
    batch, more = waiting.popleft()
    return (batch.given() if isinstance(batch, _Copies) else batch), more


class _Copies:
    """A batch whose copies are queued on a stream beside that of the loop."""

    def __init__(self, batch: Any, side: torch.cuda.Stream) -> None:
        self._side = side
        self._tensors: list[Tensor] = []
        self._batch = moved_by(self._copy, batch, side.device)
        self._copied = side.record_event()

    def given(self) -> Any:
        """The batch; what the loop's stream does from now on comes after the copies."""
        loop = torch.cuda.current_stream(self._side.device)
        loop.wait_event(self._copied)
        for tensor in self._tensors:
            tensor.record_stream(loop)  # its memory was allocated on the other stream
        return self._batch

    def _copy(self, data: Tensor, device: torch.device) -> Tensor:
        """Tensors of other kinds, and objects that move themselves, go on the loop's stream."""
        plain = type(data) is Tensor and data.layout is torch.strided and not data.is_nested
        if not (plain and data.is_cpu):
            return data.to(device, non_blocking=True)
        pinned = data if data.is_pinned() else data.pin_memory()
        with torch.cuda.stream(self._side):
            copy = pinned.to(device, non_blocking=True)
        self._tensors.append(copy)
        return copy
