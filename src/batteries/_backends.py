"""Torch's switches, in one call and with their reasons."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch

_CHOSEN = "BATTERIES_BACKENDS"  # known to processes that start later
_PRECISIONS = ("highest", "high", "medium")


def set_backends(
    *,
    matmul_precision: Literal["highest", "high", "medium"] | None = None,
    cudnn_benchmark: bool | None = None,
    anomaly_mode: bool | None = None,
    sharing_strategy: Literal["file_descriptor", "file_system"] | None = None,
    ignore_warnings: Sequence[str] = (),
) -> None:
    """Set what torch has switches for; what is not given stays as it is.

    >>> set_backends(matmul_precision="highest", ignore_warnings=["a message that is known"])

    The choice reaches the workers of `batteries.data.DataLoader`, and those of torch's that have
    `worker_init_fn=seed_all` or `seed_worker`, however they are started. Determinism is
    `seed_all`'s, which leaves a `cudnn_benchmark` that was chosen here.

    Args:
        matmul_precision: "high" multiplies float32 matrices and convolves as TF32 on GPUs since
            Ampere: several times faster, with 10 bits of mantissa instead of 23. "medium" may use
            bfloat16. "highest", torch's default for matrices, is for what 10 bits would spoil.
        cudnn_benchmark: Try all algorithms for each new shape, and keep the fastest: worth it
            where the shapes stay the same. The choice may differ from run to run.
        anomaly_mode: Stop at the operation whose gradient is NaN, with its line. Several times
            slower: for finding a bug.
        sharing_strategy: How workers hand over tensors. "file_descriptor" is faster, "file_system"
            is for "too many open files".
        ignore_warnings: Beginnings of messages, as regular expressions, besides those of before.

    Raises:
        ValueError: A precision that torch does not know, or a sharing strategy that this system
            does not have.
    """
    strategies = torch.multiprocessing.get_all_sharing_strategies()  # type: ignore[no-untyped-call]
    if sharing_strategy is not None and sharing_strategy not in strategies:
        raise ValueError(
            f"sharing_strategy is {sharing_strategy!r}; this system has {', '.join(strategies)}"
        )
    if matmul_precision not in (None, *_PRECISIONS):
        raise ValueError(
            f"matmul_precision is {matmul_precision!r}; expected one of {', '.join(_PRECISIONS)}"
        )
    known = chosen_backends()
    messages = dict.fromkeys([*known.get("ignore_warnings", ()), *ignore_warnings])
    chosen: dict[str, Any] = {
        "matmul_precision": matmul_precision,
        "cudnn_benchmark": cudnn_benchmark,
        "anomaly_mode": anomaly_mode,
        "sharing_strategy": sharing_strategy,
        "ignore_warnings": list(messages) or None,
    }
    own = {name: value for name, value in chosen.items() if value is not None}
    _apply({**own, "ignore_warnings": ignore_warnings})
    os.environ[_CHOSEN] = json.dumps({**known, **own})


def chosen_backends() -> dict[str, Any]:
    """What `set_backends` was told, here or in the process that started this one."""
    chosen: dict[str, Any] = json.loads(os.environ.get(_CHOSEN, "{}"))
    return chosen


def adopt_backends() -> None:
    """Set, in a process that was started later, what was chosen before."""
    _apply(chosen_backends())


def _apply(chosen: dict[str, Any]) -> None:
    if "matmul_precision" in chosen:
        torch.set_float32_matmul_precision(chosen["matmul_precision"])
        torch.backends.cudnn.allow_tf32 = chosen["matmul_precision"] != "highest"
    if "cudnn_benchmark" in chosen:
        torch.backends.cudnn.benchmark = chosen["cudnn_benchmark"]
    if "anomaly_mode" in chosen:
        torch.autograd.set_detect_anomaly(chosen["anomaly_mode"])
    if "sharing_strategy" in chosen:
        strategy = chosen["sharing_strategy"]
        torch.multiprocessing.set_sharing_strategy(strategy)  # type: ignore[no-untyped-call]
    for message in chosen.get("ignore_warnings", ()):
        warnings.filterwarnings("ignore", message=message)
