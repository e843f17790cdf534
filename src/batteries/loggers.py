"""Metrics to trackers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from torch import Tensor

from batteries import distributed
from batteries._optional import import_optional
from batteries.files import PathLike

Metrics = Mapping[str, "float | Tensor | Metrics"]


class TensorBoardLogger:
    """Metrics as TensorBoard event files.

    >>> with TensorBoardLogger("runs/digits/tensorboard") as tensorboard:
    ...     tensorboard.log_metrics({"train": {"loss": 0.5}, "lr": 1e-3}, step=1)

    Nested names are joined: "train/loss". Rank 0 writes; on the other ranks nothing happens.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
    """

    def __init__(self, logdir: PathLike) -> None:
        tensorboard = import_optional(
            "torch.utils.tensorboard", needs="tensorboard", for_="TensorBoardLogger"
        )
        self._writer: Any = tensorboard.SummaryWriter(logdir) if distributed.is_main() else None

    def log_metrics(self, metrics: Metrics, step: int) -> None:
        """Write each number under its name.

        >>> with TensorBoardLogger("events") as tensorboard:
        ...     tensorboard.log_metrics({"loss": 0.5}, step=1)

        Args:
            metrics: Numbers or tensors of one element; nested mappings are joined by "/".
            step: In the user's own counting: epochs, updates or samples.
        """
        if self._writer is not None:
            for name, value in _flatten(metrics):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is still in memory."""
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> TensorBoardLogger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _flatten(metrics: Metrics, prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value.item() if isinstance(value, Tensor) else float(value)
