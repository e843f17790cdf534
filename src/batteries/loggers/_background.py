"""The base class of the loggers: a thread that writes, and a state to resume from."""

from __future__ import annotations

import io
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

from numpy.typing import ArrayLike

from batteries import distributed
from batteries._files import PathLike, Place
from batteries._foreign import brief, values_in
from batteries._masking import masked
from batteries._numbers import as_whole
from batteries._processes import call_at_end
from batteries._warnings import warn
from batteries.loggers._calls import BOUND, PATIENCE, Call, Calls
from batteries.loggers._pictures import Histogram, histogram_of, png_of
from batteries.loggers._values import Metrics, Numbers, flatten, read_together

Own = TypeVar("Own", bound="BackgroundLogger")
_RETRY = 5.0  # seconds until the next attempt to open a tracker
_GRACE = 2.0  # seconds that `state_dict` waits for a tracker


class Row(NamedTuple):
    step: int
    time: float  # seconds since 1970
    metrics: dict[str, float]


class BackgroundLogger:
    """The base class of the loggers, which write to a tracker in a thread.

    Rank 0 writes; on the other ranks the calls do nothing. A call returns when it has read its
    numbers, and they reach the tracker within a second. If a tracker fails, the next call warns
    once, and training goes on. If 10,000 calls wait for a tracker, the next call waits for room, up
    to a minute. If the tracker does not answer, this and further calls are lost, and `close` says
    how many. A logger that is deleted without `close` still writes what it has. After `close`, a
    call raises a RuntimeError.

    `state_dict` has the id of the run and the highest step. Save it in the checkpoint: a run that
    loads it continues in the tracker. No metric is there twice for a step, and none is lost.

    Args:
        logdir: The run's directory, or a `Run`. Its name is the run's name in trackers.
        run_id: The run's id for the tracker. Default: a new id, or the checkpoint's.
    """

    # The thread refers to the calls, and each call to its logger. So an idle thread keeps no logger
    # alive, and a logger that is deleted lives until its calls are written.

    logdir = Place()

    def __init__(self, logdir: PathLike, *, run_id: str | None = None) -> None:
        self.logdir = logdir
        self.run_id = run_id or uuid.uuid4().hex[:16]
        self._step: int | None = None  # the highest so far
        self._continues: int | None = None  # the last step of the run to continue; None: a new run
        self._calls = Calls()
        self._ending, self._tried = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.RLock()  # several threads of the program may log at once
        self._process = 0  # in which the thread is
        self._told = False
        self._error: BaseException | None = None
        self._lost = 0
        self._failed = False  # whether the run failed, not the logger
        self._closed = False
        self._exit = partial(_close_existing, weakref.ref(self))
        self._cancel_exit: Callable[[], None] = lambda: None

    # ---------------------------------------------------------------- called in the loop

    def log_metrics(self, metrics: Metrics, step: int) -> None:
        """Write each number under its name; nested names are joined: "train/loss".

        Args:
            metrics: Numbers or tensors of one element. Those on a device are read together.
            step: Your own count of epochs, updates or samples. All calls of a logger need the same
                count, because a resumed run continues after the highest step.

        Raises:
            TypeError: A value is not one number (the message has its name), `metrics` is no
                mapping, or the step is no whole number.
            ValueError: Two values have the same joined name.
        """
        if isinstance(metrics, Numbers) or distributed.is_main():  # `Loggers` has asked is_main()
            step = self._counted(step)
            self._put("_write_metrics", Row(step, time.time(), read_together(metrics)))

    def log_params(self, params: Any) -> None:
        """Write the run's parameters; nested names are joined, secrets are masked.

        Args:
            params: A mapping, or an object with fields or attributes, such as a dataclass or the
                Namespace of argparse.

        Raises:
            ValueError: Two values have the same joined name.
        """
        self._call("_write_params", flatten(masked(params)))

    def log_figure(self, name: str, figure: Any, step: int) -> None:
        """Write a matplotlib figure, or another object with `savefig`, as an image.

        Args:
            name: The name in the tracker, such as "valid/curve".
            figure: The figure.
            step: As for `log_metrics`.

        Raises:
            TypeError: The figure has no `savefig`.
        """
        if distributed.is_main():
            if not hasattr(figure, "savefig"):
                raise TypeError(
                    f"the figure {name!r} is {brief(figure)}; expected a figure of matplotlib: if "
                    "you have axes, pass axes.figure"
                )
            image = io.BytesIO()
            figure.savefig(image, format="png")
            self._put("_write_figure", name, image.getvalue(), self._counted(step))

    def log_image(self, name: str, image: Any, step: int) -> None:
        """Write an image of uint8, or of floats from 0 to 1.

        Args:
            name: As for `log_figure`.
            image: A tensor (channels, height, width) or (height, width); an array (height, width,
                channels) or (height, width); or an image of Pillow. It has 1, 3 or 4 channels. A
                Pillow image of another mode than gray, RGB and RGBA becomes RGBA.
            step: As for `log_metrics`.

        Raises:
            ValueError: The image has another shape or dtype, or floats outside of 0 to 1.
        """
        if distributed.is_main():
            self._put("_write_figure", name, png_of(name, image), self._counted(step))

    def log_histogram(self, name: str, values: ArrayLike, step: int, bins: int = 64) -> None:
        """Write a histogram of the values of a tensor or array.

        Values that are NaN, infinite or as large as 1e300 are in no bin. The call waits for the
        device, because it copies the values.

        Args:
            name: As for `log_figure`.
            values: Real numbers, of any shape.
            step: As for `log_metrics`.
            bins: 1 to 256.

        Raises:
            TypeError: The values are no real numbers, or `bins` is no whole number.
            ValueError: Another number of bins.
        """
        if distributed.is_main():
            histogram = histogram_of(name, values, bins)
            self._put("_write_histogram", name, histogram, self._counted(step))

    def log_text(self, name: str, text: str, step: int) -> None:
        """Write a text.

        Args:
            name: As for `log_figure`.
            text: A text. Other values are written as `str` shows them.
            step: As for `log_metrics`.
        """
        self._call("_write_text", name, str(text), self._counted(step))

    def close(self) -> None:
        """Write all waiting calls and end the thread. Calling it again has no effect.

        It waits for the tracker, at most a minute.
        """
        self._cancel_exit()
        self._closed = True
        if self._thread is not None:
            self._calls.put((self, "_end", ()))
            self._ending.set()
            self._calls.wake()
            self._thread.join(PATIENCE)
            if self._thread.is_alive():
                self._lost += len(self._calls)
                self._error = TimeoutError(f"it did not answer for {PATIENCE:.0f} s")
            self._thread = None
        self._report()
        if self._lost:
            warn(f"{self._name}: {self._lost} calls were lost")
            self._lost = 0

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._failed = error is not None
        self.close()

    # ---------------------------------------------------------------- the state

    def state_dict(self) -> dict[str, Any]:
        """The id of the run, and the highest step that was logged.

        The call waits until the tracker has all steps up to this one: about a millisecond, and at
        most two seconds. It does not wait for a tracker that fails. W&B's server writes the steps
        half a second later.
        """
        self._wait_until_written()
        return {"run_id": self.run_id, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the run of a state, after its step.

        Args:
            state: What `state_dict` returned.

        Raises:
            KeyError, TypeError: The state does not come from `state_dict`.
            RuntimeError: The logger has logged already.
        """
        if self._thread is not None:
            raise RuntimeError(
                f"{self._name} has begun to log: load its state before the first call"
            )
        self.run_id, self._step = values_in(state, f"{self._name}.state_dict", "run_id", "step")
        self._continues = -1 if self._step is None else self._step

    def start_over(self) -> None:
        """Start the run from its first step, because it has no checkpoint.

        `resume` calls it if it finds no checkpoint. After the first logging call it does nothing.
        """
        if self._thread is None:
            self._continues = -1

    # ---------------------------------------------------------------- defined by each tracker

    _opens_at_once = False  # whether the first call waits until the tracker is open

    def _look_around(self) -> None: ...  # in the program's thread, before `_open`
    def _open(self) -> None: ...
    def _write_metrics(self, rows: list[Row]) -> None: ...
    def _write_params(self, params: dict[str, Any]) -> None: ...
    def _write_figure(self, name: str, png: bytes, step: int) -> None: ...
    def _write_histogram(self, name: str, histogram: Histogram, step: int) -> None: ...
    def _write_text(self, name: str, text: str, step: int) -> None: ...
    def _flush(self) -> None: ...
    def _close(self) -> None: ...

    # ---------------------------------------------------------------- the thread

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _counted(self, step: int) -> int:
        step = as_whole(step, "step")
        self._step = step if self._step is None else max(step, self._step)
        return step

    def _call(self, what: str, *arguments: Any) -> None:
        if distributed.is_main():
            self._put(what, *arguments)

    def _put(self, what: str, *arguments: Any) -> None:
        if self._closed:
            raise RuntimeError(f"{self._name} was closed: log before close()")
        if self._error is not None:
            self._report()
        if self._process != os.getpid() and not self._started():
            self._lost += 1
            self._report()
            return
        if self._calls.has_room(wait=self._error is None):
            self._calls.put((self, what, arguments))
        else:
            self._lost += 1
            self._error = self._error or TimeoutError(
                f"{BOUND:,} calls wait for it; further calls are lost"
            )
        if self._opens_at_once and not self._tried.is_set():
            self._tried.wait(PATIENCE)
            self._tried.set()

    def _started(self) -> bool:
        """Start the thread; False in a fork of the process that has it."""
        with self._starting:
            if self._thread is None:
                self._look_around()
                self._thread = threading.Thread(
                    target=_work, args=(self._calls,), name=self._name, daemon=True
                )
                # Not before, because this process may be a fork of the one that made the logger.
                self._cancel_exit = call_at_end(self._exit)
                self._process = os.getpid()
                self._thread.start()
        if self._process == os.getpid():
            return True
        self._error = self._error or RuntimeError(
            f"it has begun in process {self._process}, of which this process is a fork: make a "
            "logger in each process"
        )
        return False

    def _wait_until_written(self) -> None:
        """Wait for the calls before, or until the tracker fails or takes too long."""
        if self._thread is None or self._error is not None or not self._thread.is_alive():
            return
        end = time.monotonic() + _GRACE
        if not self._tried.wait(_GRACE) or self._error is not None:
            return  # calls that wait for a tracker to open are counted as lost: add none
        written = threading.Event()
        self._calls.put((self, "_tell", (written,)))
        self._calls.wake()
        while not written.wait(0.05) and self._error is None and time.monotonic() < end:
            pass

    def _report(self) -> None:
        if self._error is not None and not self._told:
            self._told = True
            error, given = self._error, self.logdir
            text = str(error).replace(str(given.absolute()), str(given))  # the thread's is absolute
            warn(
                f"{self._name} ({given}) fails, and training goes on: "
                f"{type(error).__name__}: {text}",
            )

    def __del__(self) -> None:
        if not self.__dict__.get("_closed", True):
            self._closed = True
            if self._thread is None:
                self._cancel_exit()
            else:
                self._calls.put((self, "_end", ()))  # the logger lives until this call is done

    def _begin(self) -> bool:
        """Open the tracker; False if the logger was closed before that was possible."""
        while True:
            opened = self._try(self._open)
            self._tried.set()
            if opened:
                break
            if self._ending.wait(_RETRY):  # meanwhile the calls wait in the queue
                self._lost += len(self._calls)  # the first call is out of it, "_end" is in it
                return False
        if not self._closed:  # registered again, to run before the tracker's own exit function
            self._cancel_exit()
            self._cancel_exit = call_at_end(self._exit)
        return True

    def _end(self) -> None:
        self._try(self._close)
        if not self._ending.is_set():  # the logger was deleted without `close`
            self._cancel_exit()
            self._report()

    def _write_calls(self, calls: list[Call]) -> None:
        lost, waiting = 0, [call[2][0] for call in calls if call[1] == "_tell"]
        calls = [call for call in calls if call[1] != "_tell"]
        for what, group in groupby(calls, key=lambda call: call[1]):
            arguments = [arguments for _, _, arguments in group]
            if what == "_write_metrics":
                arguments = [([row for (row,) in arguments],)]
            for each in arguments:
                if not self._try(getattr(self, what), *each):
                    lost += len(each[0]) if what == "_write_metrics" else 1
        self._lost += lost if self._try(self._flush) else len(calls)
        for written in waiting:
            written.set()

    def _try(self, function: Any, *arguments: Any) -> bool:
        try:
            function(*arguments)
        except BaseException as error:  # a SystemExit would end the thread without a word
            self._error = self._error or error
            return False
        return True


def _work(calls: Calls) -> None:
    some = calls.first()
    if not some[0][0]._begin():
        return
    while some[-1][1] != "_end":
        some[0][0]._write_calls(some)
        some.clear()  # no reference to the logger remains here
        some = calls.gathered()
    some[0][0]._write_calls(some[:-1])
    some[0][0]._end()


def _close_existing(logger: weakref.ref[BackgroundLogger]) -> None:
    """Close a logger at the end of the program, if it still exists."""
    if (there := logger()) is not None:
        there.close()
