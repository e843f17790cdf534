"""Torch's global settings in one call."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch

from batteries._arrays import as_names

_CHOSEN = "BATTERIES_BACKENDS"  # a variable, which processes that start later inherit
_PRECISIONS = ("highest", "high", "medium")


def set_backends(
    *,
    matmul_precision: Literal["highest", "high", "medium"] | None = None,
    cudnn_benchmark: bool | None = None,
    anomaly_mode: bool | None = None,
    sharing_strategy: Literal["file_descriptor", "file_system"] | None = None,
    ignore_warnings: str | Sequence[str] = (),
) -> None:
    """Change torch's global settings. Settings that you do not pass keep their values.

    >>> set_backends(matmul_precision="highest", ignore_warnings=["a message that is known"])

    The settings also apply in the workers of `batteries.data.DataLoader`, and of torch's loaders
    with `worker_init_fn=seed_all` or `seed_worker`. `seed_all` sets determinism, and keeps a
    `cudnn_benchmark` that was set here.

    Args:
        matmul_precision: "high" uses TF32 for float32 matrix products and convolutions on GPUs
            since Ampere, which is several times faster and has 10 bits of mantissa, not 23.
            "medium" may use bfloat16. "highest" is torch's default for matrices. For convolutions,
            torch uses TF32 by default, and "highest" turns it off.
        cudnn_benchmark: Try all algorithms for each new shape, and keep the fastest. It helps if
            the shapes stay the same. The choice may differ between runs.
        anomaly_mode: Raise at the operation whose gradient is NaN, with its line. Training is
            several times slower, so use it only to find an error.
        sharing_strategy: How workers send tensors. "file_descriptor" is faster. Use "file_system"
            if you see "too many open files".
        ignore_warnings: One or more regular expressions for the beginnings of messages, in addition
            to those of earlier calls.

    Raises:
        ValueError: Torch does not know the precision, this system does not have the sharing
            strategy, or a message is not a regular expression. Nothing has changed then.
        TypeError: `cudnn_benchmark` or `anomaly_mode` is not a bool. Nothing has changed then.
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
    for name, switch in (("cudnn_benchmark", cudnn_benchmark), ("anomaly_mode", anomaly_mode)):
        if not isinstance(switch, bool | None):
            raise TypeError(f"{name} is {switch!r}; expected True or False")
    known = chosen_backends()
    ignore_warnings = as_names(ignore_warnings)
    for message in ignore_warnings:
        try:
            re.compile(message)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"ignore_warnings has {message!r}; expected a regular expression ({error}): put a "
                "backslash before each special character, as re.escape does"
            ) from None
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
    """The arguments of all calls of `set_backends`, also in the process that started this one."""
    chosen: dict[str, Any] = json.loads(os.environ.get(_CHOSEN, "{}"))
    return chosen


def adopt_backends() -> None:
    """Apply the settings in a process that was started later."""
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
