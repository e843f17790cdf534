"""Progress bars: tqdm's own, on rank 0 alone, and readable in a log file."""

from __future__ import annotations

from collections.abc import Mapping
from time import time
from typing import Any

from tqdm.auto import tqdm as _tqdm

from batteries import distributed
from batteries._meters import AverageMeter

__all__ = ["tqdm"]

_TQDM_INTERVAL = 0.1  # seconds: tqdm's own default for `mininterval`
_LINE_INTERVAL = 10.0


class tqdm(_tqdm):  # type: ignore[type-arg]  # noqa: N801
    """`tqdm.auto.tqdm` with all its arguments, and two.

    >>> loss = AverageMeter()
    >>> for batch in tqdm([1, 2, 3], "epoch 1", batch_size=32, meters={"loss": loss}, disable=True):
    ...     loss.update(0.5)

    Other ranks than 0 show nothing. In a terminal it is a bar, in a notebook a widget. Anywhere
    else (a log file, a pipe) it writes a line every 10 seconds, or every `mininterval`, and one at
    the end.

    Args:
        batch_size: Of a step, on all ranks together: shows samples a second.
        meters: Shown with their names. They are read when something is drawn, ten times a second
            at most, and not at each step: reading one waits for its device.
    """

    def __init__(
        self,
        *args: Any,
        batch_size: int | None = None,
        meters: Mapping[str, AverageMeter] | None = None,
        **kwargs: Any,
    ) -> None:
        self._batch_size, self._meters = batch_size, meters or {}
        self._last_line = 0.0
        if distributed.rank() != 0:
            kwargs["disable"] = True
        super().__init__(*args, **kwargs)
        if self.disable or self._redraws():
            return
        self._last_line = self.start_t
        if "mininterval" not in kwargs and self.mininterval == _TQDM_INTERVAL:
            self.mininterval = _LINE_INTERVAL
        if kwargs.get("ncols") is None:
            self.ncols = 0  # numbers without a bar

    @property
    def format_dict(self) -> Any:
        """What is drawn, by its name; tqdm asks for it each time."""
        found = super().format_dict
        told = [found["postfix"]] if found["postfix"] else []
        if self._batch_size and found["elapsed"]:
            rate = found["rate"] or (found["n"] - found["initial"]) / found["elapsed"]
            told.append(f"{rate * self._batch_size:,.0f} samples/s")
        averages = {name: meter.average for name, meter in self._meters.items()}
        told += [
            f"{name} {average:.4g}"
            for name, average in averages.items()
            if average == average or self._meters[name].counter  # NaN of nothing is left out
        ]
        found["postfix"] = ", ".join(told)
        return found

    def _redraws(self) -> bool:
        isatty = getattr(self.fp, "isatty", None)
        return self.gui or bool(isatty and isatty())

    def display(self, msg: str | None = None, pos: int | None = None, **kwargs: Any) -> Any:
        if self._redraws():
            return super().display(msg, pos, **kwargs)
        if msg == "":  # what closing a bar with leave=False asks for: take it from the screen
            return True
        closing = self.disable  # close() has set it by now, and ends the line itself
        if closing:
            self.fp.write(str(self))
        elif self._between() and time() - self._last_line >= self.mininterval:
            self._last_line = time()
            self.fp.write(f"{self}\n")
        self.fp.flush()
        return True

    def _between(self) -> bool:
        """Neither at the start nor at the end, which has a line of its own."""
        return self.n > self.initial and self.n != self.total

    def clear(self, *args: Any, **kwargs: Any) -> None:
        if not self.disable and self._redraws():
            super().clear(*args, **kwargs)

    def moveto(self, n: int) -> None:
        if self._redraws():
            super().moveto(n)
