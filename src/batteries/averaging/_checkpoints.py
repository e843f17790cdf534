"""The average of checkpoint files, in the memory of one model."""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from batteries._arrays import by_name
from batteries._files import PathLike, listed, refuse_source
from batteries._modules import unwrap
from batteries._numbers import as_number, as_whole
from batteries._rundir.history import NAME, read_history
from batteries._rundir.names import checkpoint_name
from batteries.averaging._batch_norm import update_bn
from batteries.averaging._parts import Averaging
from batteries.averaging._sources import Part, Source, lies_alike, weights_in
from batteries.checkpoint._contents import state_of
from batteries.checkpoint._load_states import put_in
from batteries.checkpoint._read import peek, read_whole
from batteries.checkpoint._read_outline import CheckpointError
from batteries.checkpoint._write import leaves_of, save_checkpoint
from batteries.progress import tqdm

_THREADS = 32  # at most; each takes a MiB


def average_checkpoints(
    paths: Iterable[PathLike],
    weights: Mapping[Any, float] | Iterable[float] | None = None,
    dtype: torch.dtype = torch.float32,
) -> OrderedDict[str, Any]:
    """The average of the weights in checkpoints, as the state dict of a model.

    >>> for epoch in (1, 2):
    ...     state = {"weight": torch.full((2,), float(epoch))}
    ...     save_checkpoint({"model_state_dict": state}, f"exp_{epoch}.pth")
    >>> average_checkpoints(["exp_1.pth", "exp_2.pth"])["weight"]
    tensor([1.5000, 1.5000])

    All files are read at the same time, in pieces. This takes the memory of one model, and a MiB
    for each of torch's threads (at most 32). Tensors are found by name. A tensor whose strides
    differ between files takes a few times its memory. This process alone reads a sharded checkpoint
    (`.dcp`), one tensor at a time.

    The implementation is just `average.lerp_(weight, 1 / n)`, so the average of copies of one model
    is that model, bit for bit. Files are verified as by `load_checkpoint`, and nothing is returned
    if one is damaged.

    Integer tensors of one element, such as `num_batches_tracked`, get the largest value. Integer
    tensors of several elements and values that are no tensors are taken from the first file. Bool
    tensors must be the same in all files. The statistics of batch norm are averaged too, but
    averaged weights need new ones: call `update_bn`. Tensors that share memory in all files share
    memory in the result.

    Args:
        paths: Checkpoints or state dicts of one model.
        weights: The weight of each file, 0 or more, in order or by path. Their sum does not matter.
            Default: all equal.
        dtype: The least precise dtype to compute in: float64 tensors are averaged in float64. It
            has 16 bits or more. The result has the dtypes of the files.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No files, not one weight for each, a weight below 0, a weight that is not
            finite, or no weight above 0.
        TypeError: A weight that is not a number, or another `dtype`.
        CheckpointError: A damaged file, a file without a model's weights, or files of different
            models. The message has the file and, if models differ, the tensor's name.
    """
    real = isinstance(dtype, torch.dtype) and dtype.is_floating_point
    if not real or dtype.itemsize < 2:
        raise TypeError(
            f"dtype is {dtype!r}; expected a floating-point dtype of 16 bits or more, such as "
            "torch.float32"
        )
    files = listed(paths)
    counts = _counts(weights, files)
    with ExitStack() as stack:
        sources = [Source.opened(path, stack) for path in files]
        for another in sources[1:]:
            sources[0].check_alike(another)
        parts, first = sources[0].parts(sources[1:]), sources[0].state
        state = OrderedDict((key, _without_data(value)) for key, value in first.items())
        alike, unlike = _parted(parts, sources)
        threads = min(torch.get_num_threads(), _THREADS)
        stack.callback(torch.set_num_threads, torch.get_num_threads())  # also for new threads
        size = sum(part.size for part in parts)
        bar = tqdm(desc="average", total=size, unit="B", unit_scale=True, leave=False, disable=None)
        averaging = Averaging(sources, counts, dtype, bar)
        # Without this, torch's own threads in each of ours take a quarter more time.
        alone = functools.partial(torch.set_num_threads, 1)
        with bar, ThreadPoolExecutor(threads, initializer=alone) as pool:
            for averaged in pool.map(averaging.of, _shared_out(alike, threads)):
                state.update(averaged)
            state.update(averaging.of(unlike))
    for key in [key for key, value in state.items() if _has_meta(value)]:  # an extra state
        state[key] = weights_in(read_whole(files[0], alone=True), files[0])[key]
    state.__dict__.update(getattr(first, "__dict__", {}))  # the versions of its modules
    return state


def save_average(
    paths: Iterable[PathLike],
    out: PathLike,
    weights: Mapping[Any, float] | Iterable[float] | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    model: nn.Module | None = None,
    loader: Iterable[Any] | None = None,
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """Write the average of checkpoints as a checkpoint that lists its parts.

    >>> for epoch in (3, 7):
    ...     checkpoint = make_checkpoint("train", epoch, nn.Linear(2, 1), metrics={"loss": 0.5})
    ...     save_checkpoint(checkpoint, f"exp_{epoch}.pth")
    >>> checkpoint = save_average(["exp_3.pth", "exp_7.pth"], "swa.pth")
    >>> [(part["epoch"], part["weight"]) for part in load_checkpoint("swa.pth")["averaged"]]
    [(3, 0.5), (7, 0.5)]

    The written checkpoint has no optimizer, and its stage is "average". Its key "averaged" lists
    the path, weight, stage, epoch and metrics of each part. These weights sum to 1.

    Call it on one rank. With a `loader` in a process group, `update_bn` would wait for the other
    ranks: call `average_checkpoints` and `update_bn` on all ranks, and `save_checkpoint` on rank 0.

    Args:
        out: The file to write.
        paths, weights, dtype: As for `average_checkpoints`.
        model: A model of the same class, bare or wrapped. It gets the averaged weights. With
            `loader` it also gets new statistics of batch norm (`update_bn`), which are stored.
        loader, device: For `update_bn`.

    Returns:
        The checkpoint that was written.

    Raises:
        ValueError: A loader without a model, or `out` is one of the paths.
        RuntimeError: The averaged weights do not fit the model, which then stays as it was.
        Exception: An error of `average_checkpoints`, `update_bn` or `save_checkpoint`.
    """
    if loader is not None and model is None:
        raise ValueError(
            "save_average got a loader but no model, and needs both for batch norm's statistics: "
            "pass model=, too"
        )
    files = listed(paths)
    counts = _counts(weights, files)
    refuse_source(out, files)
    state = average_checkpoints(files, counts, dtype)
    if model is not None:
        try:  # all weights are loaded, or none
            put_in({"model_state_dict": state}, {"model": unwrap(model)}, "the average")
        except CheckpointError as error:
            raise RuntimeError(str(error)) from error
        if loader is not None:
            update_bn(model, loader, device)
        state = state_of(model)
    kept = ("stage", "epoch", "metrics")
    averaged = []
    for path, count in zip(files, counts, strict=True):
        found = peek(path)
        known = {key: found[key] for key in kept if key in found and not _has_meta(found[key])}
        averaged.append({"path": str(path), "weight": count / sum(counts), **known})
    checkpoint = {"stage": "average", "model_state_dict": state, "averaged": averaged}
    save_checkpoint(checkpoint, out)
    return checkpoint


def best_checkpoints(logdir: PathLike, number: int) -> list[Path]:
    """The files of a log directory's best epochs, best first.

    >>> manager = CheckpointManager("runs/a", metric="accuracy", metric_minimization=False)
    >>> for epoch, accuracy in enumerate([0.5, 0.7, 0.6], start=1):
    ...     checkpoint = make_checkpoint("train", epoch, nn.Linear(2, 1))
    ...     manager.process(accuracy, epoch, checkpoint)
    >>> [path.name for path in best_checkpoints("runs/a", 2)]
    ['exp_2.pth', 'exp_3.pth']

    The checkpoints of a sharded manager are directories. `average_checkpoints` reads them, too.

    Args:
        logdir: The directory of a `CheckpointManager`.
        number: How many files to return, 1 or more.

    Raises:
        ValueError: A number below 1, or a damaged `metrics.json`.
        TypeError: A number that is not whole.
        FileNotFoundError: No `metrics.json`, or fewer checkpoints. The error says how many.
    """
    number = as_whole(number, "number")
    if number < 1:
        raise ValueError(f"best_checkpoints was asked for {number}; expected 1 or more")
    folder = Path(logdir)
    path = folder / NAME
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there: pass the directory of a CheckpointManager, which writes it"
        )
    metric, minimization, found, _ = read_history(path, inside=folder)
    sign = 1 if minimization else -1
    rows = [row for row in found if row.get(metric) is not None]
    ranked = sorted(rows, key=lambda row: sign * row[metric])
    ends = (".pth", ".dcp")
    names = [[folder / checkpoint_name(row["epoch"], end) for end in ends] for row in ranked]
    kept = [path for epoch in names for path in [path for path in epoch if path.exists()][:1]]
    if len(kept) < number:
        raise FileNotFoundError(
            f"{folder} has {len(kept)} exp_* with a score, not {number}: ask for fewer, or train "
            "with a larger save_n_best of the CheckpointManager"
        )
    return kept[:number]


def _counts(
    weights: Mapping[Any, float] | Iterable[float] | None, files: list[Path]
) -> list[float]:
    number = len(files)
    if not number:
        raise ValueError("there are no checkpoints to average")
    weights = by_name(weights)
    if isinstance(weights, Mapping):
        by_path = {Path(path): weight for path, weight in weights.items()}
        if by_path.keys() != set(files):
            raise ValueError(
                f"the weights are of {', '.join(map(str, by_path))}, but the checkpoints are "
                f"{', '.join(map(str, files))}; expected one for each"
            )
        weights = [by_path[path] for path in files]
    own = [1.0] * number if weights is None else [as_number(each, "a weight") for each in weights]
    if len(own) != number:
        raise ValueError(
            f"there are {len(own)} weights for {number} checkpoints; expected one for each"
        )
    if not all(0 <= weight < math.inf for weight in own) or not 0 < sum(own) < math.inf:
        raise ValueError(
            f"the weights are {own}; expected positive numbers or 0, and a finite sum above 0"
        )
    return own


def _has_meta(value: Any) -> bool:
    tensors = (leaf for leaf in leaves_of(value) if isinstance(leaf, Tensor))
    return any(tensor.is_meta and tensor.numel() > 0 for tensor in tensors)


def _without_data(value: Any) -> Any:
    """The value, or a real tensor if it has no elements: no part has such a tensor."""
    empty = isinstance(value, Tensor) and not value.numel()
    return torch.empty_like(value, device="cpu") if empty else value


def _parted(parts: list[Part], sources: list[Source]) -> tuple[list[Part], list[Part]]:
    """The parts whose tensors all lie alike in all files, and the others."""
    alike: list[Part] = []
    unlike: list[Part] = []
    for part in parts:
        same = all(lies_alike(key, form, sources) for key, form in part.forms.items())
        (alike if same else unlike).append(part)
    return alike, unlike


def _shared_out(parts: list[Part], threads: int) -> list[list[Part]]:
    """Neighbouring parts for each thread, with about the same number of bytes."""
    ends = list(itertools.accumulate(part.size for part in parts))
    total = ends[-1] if ends else 0
    bounds = [bisect.bisect_left(ends, total * thread / threads) for thread in range(threads)]
    return [parts[begin:end] for begin, end in itertools.pairwise([*bounds, len(parts)])]
