"""Progress bars of tqdm, on rank 0 only, and readable in a log file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from time import time
from typing import Any

from tqdm.auto import tqdm as _tqdm

from batteries import distributed
from batteries._foreign import brief
from batteries._meters import AverageMeter
from batteries._numbers import as_number

__all__ = ["tqdm"]

_TQDM_INTERVAL = 0.1  # seconds, tqdm's default for `mininterval`
_LINE_INTERVAL = 10.0  # seconds between two lines of a log file


class tqdm(_tqdm):  # type: ignore[type-arg]  # noqa: N801
    """`tqdm.auto.tqdm` with two more arguments.

    >>> loss = AverageMeter()
    >>> for batch in tqdm([1, 2, 3], "epoch 1", batch_size=32, meters={"loss": loss}, disable=True):
    ...     loss.update(0.5)

    Only rank 0 shows it: in a terminal as a bar, in a notebook as a widget. In a log file or a pipe
    it writes a line every 10 seconds, or every `mininterval` seconds. It also writes a line at the
    end, unless `leave=False`. After a resume inside of an epoch it begins at the batches that
    `data.DataLoader` gave before.

    Args:
        batch_size: The samples of a step on all ranks together. With it, samples a second are
            shown.
        meters: Meters to show, by name. Reading a meter waits for its device, so they are read only
            when the bar is drawn, at most ten times a second.

    Raises:
        TypeError: `batch_size` is no number, or `meters` has other values than meters.
    """

    disable = True  # older tqdm read it in `__del__`, also after an error in `__init__`

    def __init__(
        self,
        *args: Any,
        batch_size: int | None = None,
        meters: Mapping[str, AverageMeter] | None = None,
        **kwargs: Any,
    ) -> None:
        self._batch_size = None if batch_size is None else as_number(batch_size, "batch_size")
        self._meters = {} if meters is None else meters
        named = isinstance(self._meters, Mapping)
        if not named or not all("average" in dir(each) for each in self._meters.values()):
            raise TypeError(
                f"meters is {brief(meters)}; expected meters by their names: {{'loss': meter}}"
            )
        self._last_line = 0.0
        if distributed.rank() != 0 or (kwargs.get("file") or sys.stderr) is None:
            kwargs["disable"] = True
        if before := getattr(args[0] if args else kwargs.get("iterable"), "batches_before", 0):
            kwargs.setdefault("initial", before)
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
        """The values to draw; tqdm reads them each time."""
        found = super().format_dict
        told = [found["postfix"]] if found["postfix"] else []
        if self._batch_size and found["elapsed"]:
            rate = found["rate"] or (found["n"] - found["initial"]) / found["elapsed"]
            told.append(f"{rate * self._batch_size:,.0f} samples/s")
        averages = {name: meter.average for name, meter in self._meters.items()}
        told += [
            f"{name} {average:.4g}"
            for name, average in averages.items()
            if average == average or self._meters[name].counter  # a meter without numbers is hidden
        ]
        found["postfix"] = ", ".join(told)
        return found

    def _redraws(self) -> bool:
        isatty = getattr(self.fp, "isatty", None)
        return self.gui or bool(isatty and isatty())

    def display(self, msg: str | None = None, pos: int | None = None, **kwargs: Any) -> Any:
        if self._redraws():
            return super().display(msg, pos, **kwargs)
        if msg == "":  # this is how close() clears a bar with leave=False
            return True
        closing = self.disable  # close() has set it, and writes the line's end
        if closing:
            self.fp.write(str(self))
        elif self._between() and time() - self._last_line >= self.mininterval:
            self._last_line = time()
            self.fp.write(f"{self}\n")
        self.fp.flush()
        return True

    def _between(self) -> bool:
        """Whether it is neither the start nor the end, which has its own line."""
        return self.n > self.initial and self.n != self.total

    def clear(self, *args: Any, **kwargs: Any) -> None:
        if not self.disable and self._redraws():
            super().clear(*args, **kwargs)

    def moveto(self, n: int) -> None:
        if self._redraws():
            super().moveto(n)
