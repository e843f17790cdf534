"""Several loggers as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from numpy.typing import ArrayLike

from batteries import distributed
from batteries._foreign import brief
from batteries._masking import masked
from batteries._numbers import as_whole
from batteries._warnings import warn
from batteries.loggers._values import Metrics, flatten, read_together


@runtime_checkable
class Logger(Protocol):
    """A logger needs `log_metrics(metrics, step)` and `close()`, also one of your own.

    It may also have log_params, log_figure, log_image, log_histogram and log_text. `Loggers`
    calls only the methods that exist.
    """

    def log_metrics(self, metrics: Any, step: int) -> None:
        """Write numbers. On rank 0, `Loggers` passes `metrics` as floats by joined names.

        Args:
            metrics: Such as {"train/loss": 0.5}.
            step: A whole number.
        """

    def close(self) -> None:
        """Write all that waits."""


class Loggers:
    """Calls several loggers. If one fails, training and the other loggers go on.

    >>> with Loggers(JsonLinesLogger("runs/digits"), TensorBoardLogger("runs/tb")) as loggers:
    ...     loggers.log_metrics({"train": {"loss": 0.5}, "lr": 1e-3}, step=1)

    The first error of each logger is a warning, and the logger is still called afterwards. Numbers
    on a device are read once for all loggers. With `make_checkpoint(..., loggers=loggers)` and
    `resume(..., loggers=loggers)`, each logger continues its run.

    Args:
        *loggers: Loggers of this module, or other objects with the methods of `Logger`.

    Raises:
        TypeError: An argument lacks these methods.
    """

    def __init__(self, *loggers: Logger) -> None:
        for each in loggers:
            if not isinstance(each, Logger):
                raise TypeError(
                    f"{brief(each)} is no logger: pass each logger as an argument of its own, an "
                    "object with the methods log_metrics and close"
                )
        self._loggers = loggers
        self._failed: set[int] = set()

    def log_metrics(self, metrics: Metrics, step: int) -> None:
        """Write each number under its name; nested names are joined: "train/loss".

        Args:
            metrics: Numbers or tensors of one element.
            step: Your own count of epochs, updates or samples, the same in all calls.

        Raises:
            TypeError: A value is not one number (the message has its name), `metrics` is no
                mapping, or the step is no whole number.
            ValueError: Two values have the same joined name.
        """
        if distributed.is_main():
            self._on_each("log_metrics", read_together(metrics), as_whole(step, "step"))

    def log_params(self, params: Any) -> None:
        """Write the run's parameters.

        Args:
            params: A mapping, or an object with fields or attributes.

        Raises:
            ValueError: Two values have the same joined name.
        """
        flatten(masked(params))  # an error in the names raises here; it is no tracker's failure
        self._each("log_params", params)

    def log_figure(self, name: str, figure: Any, step: int) -> None:
        """Write a matplotlib figure as an image.

        Args:
            name: The name in the trackers, such as "valid/curve".
            figure: A figure, or another object with `savefig`.
            step: As for `log_metrics`.
        """
        self._each("log_figure", name, figure, step)

    def log_image(self, name: str, image: Any, step: int) -> None:
        """Write an image: a tensor (channels, height, width) or an array (height, width, channels).

        Both may also be (height, width). The values are uint8, bools, or floats from 0 to 1.

        Args:
            name, step: As for `log_figure`.
            image: The tensor or array, or an image of Pillow.
        """
        self._each("log_image", name, image, step)

    def log_histogram(self, name: str, values: ArrayLike, step: int, bins: int = 64) -> None:
        """Write a histogram of the values of a tensor or array.

        Args:
            name, step: As for `log_figure`.
            values: Real numbers, of any shape.
            bins: 1 to 256.
        """
        self._each("log_histogram", name, values, step, bins)

    def log_text(self, name: str, text: str, step: int) -> None:
        """Write a text.

        Args:
            name, step: As for `log_figure`.
            text: The text.
        """
        self._each("log_text", name, text, step)

    def close(self) -> None:
        """Close each logger, on every rank."""
        self._on_each("close")

    def state_dict(self) -> dict[str, Any]:
        """The state of each logger that has one, by the name of its class.

        The second logger of a class has a number after its name: "JsonLinesLogger 2".

        >>> Loggers(JsonLinesLogger("runs", run_id="a")).state_dict()
        {'JsonLinesLogger': {'run_id': 'a', 'step': None}}
        """
        named = self._named().items()
        return {name: each.state_dict() for name, each in named if hasattr(each, "state_dict")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let each logger continue its run. A logger that is not in the state begins a new run."""
        for name, each in self._named().items():
            if name in state:
                each.load_state_dict(state[name])

    def start_over(self) -> None:
        """Let each logger start its run from the first step, because it has no checkpoint."""
        for each in self._loggers:
            if hasattr(each, "start_over"):
                each.start_over()

    def _named(self) -> dict[str, Any]:
        named: dict[str, Any] = {}
        for each in self._loggers:
            name = type(each).__name__
            count = sum(type(other).__name__ == name for other in named.values())
            named[f"{name} {count + 1}" if count else name] = each
        return named

    def _each(self, what: str, *arguments: Any) -> None:
        if distributed.is_main():
            self._on_each(what, *arguments)

    def _on_each(self, what: str, *arguments: Any) -> None:
        for number, each in enumerate(self._loggers):
            if hasattr(each, what):
                self._try(number, getattr(each, what), *arguments)

    def _try(self, number: int, method: Callable[..., Any], *arguments: Any) -> None:
        try:
            method(*arguments)
        except Exception as error:
            if number not in self._failed:
                self._failed.add(number)
                warn(
                    f"{type(self._loggers[number]).__name__}.{method.__name__} fails, and training "
                    f"goes on: {type(error).__name__}: {error}",
                )

    def __enter__(self) -> Loggers:
        return self

    def __exit__(self, *error: object) -> None:
        for number, each in enumerate(self._loggers):
            if hasattr(each, "__exit__"):
                self._try(number, each.__exit__, *error)
            else:
                self._try(number, each.close)
