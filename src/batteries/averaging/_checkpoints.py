"""The average of checkpoint files, in the memory of one model."""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from batteries._files import PathLike, listed
from batteries._rundir.history import NAME, read_history
from batteries._rundir.names import checkpoint_name
from batteries.averaging._batch_norm import update_bn
from batteries.averaging._parts import Averaging
from batteries.averaging._sources import Part, Source, lies_alike, weights_in
from batteries.checkpoint._contents import rebuilt, state_of
from batteries.checkpoint._read import peek, read_alone
from batteries.checkpoint._write import save_checkpoint
from batteries.progress import tqdm

State = OrderedDict[str, Any]
_THREADS = 32  # of which each holds a MiB


def average_checkpoints(
    paths: Iterable[PathLike],
    weights: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
) -> State:
    """The average of the weights in checkpoints, as the state dict of a model.

    >>> for epoch in (1, 2):
    ...     state = {"weight": torch.full((2,), float(epoch))}
    ...     save_checkpoint({"model_state_dict": state}, f"exp_{epoch}.pth")
    >>> average_checkpoints(["exp_1.pth", "exp_2.pth"])["weight"]
    tensor([1.5000, 1.5000])

    The files are read piece by piece, side by side: it takes the memory of one model and a MiB for
    each of torch's threads, of 32 at most. Tensors are found by name, in any order. One that has
    other strides in some file is read as a whole, of one file after the other, which takes a few
    times its memory. Sharded checkpoints (`.dcp`) are read by this process alone, one tensor at a
    time, and verified first.

    The average runs, `average.lerp_(weight, 1 / n)`, so that of copies of one model it is that
    model, bit by bit. Files are verified as `load_checkpoint` does it: those of `save_checkpoint`
    by the digest of the whole file, those of `torch.save` by the checksums of their records (they
    are read twice); nothing is returned if one is damaged. `.safetensors` have nothing to verify.

    Integer tensors of one element, such as batch norm's `num_batches_tracked`, become the largest;
    larger ones, such as tables of positions, are the first file's; bool ones must be the same in
    all files. The statistics of batch norm are averaged, which is not what they are of the average
    weights: `update_bn`. Memory that tensors share in all files they share in the average.

    Args:
        weights: How much each file counts for; their sum does not matter. Default: all the same.
        dtype: What is computed in, at least: float64 tensors are averaged in float64. The result
            has the dtypes of the files.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No files, or weights that are not positive numbers, one for each file.
        CheckpointError: A damaged file, or another model: with the file and the name.
    """
    files = listed(paths)
    counts = _counts(weights, len(files))
    with ExitStack() as stack:
        sources = [Source.opened(path, stack) for path in files]
        for another in sources[1:]:
            sources[0].check_alike(another)
        parts, first = sources[0].parts(sources[1:]), sources[0].state
        state: State = OrderedDict((key, _without_data(value)) for key, value in first.items())
        alike, unlike = _parted(parts, sources)
        threads = min(torch.get_num_threads(), _THREADS)
        stack.callback(torch.set_num_threads, torch.get_num_threads())  # for threads to come
        size = sum(part.size for part in parts)
        bar = tqdm(desc="average", total=size, unit="B", unit_scale=True, leave=False, disable=None)
        averaging = Averaging(sources, counts, dtype, bar)
        # each by itself: threads of torch's own for each of ours take a quarter more time
        alone = functools.partial(torch.set_num_threads, 1)
        with bar, ThreadPoolExecutor(threads, initializer=alone) as pool:
            for averaged in pool.map(averaging.of, _shared_out(alike, threads)):
                state.update(averaged)
            state.update(averaging.of(unlike))
    for key in [key for key, value in state.items() if _has_meta(value)]:  # an extra state
        state[key] = weights_in(read_alone(files[0]), files[0])[key]
    state.__dict__.update(getattr(first, "__dict__", {}))  # the versions of its modules
    return state


def save_average(
    paths: Iterable[PathLike],
    out: PathLike,
    weights: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    model: nn.Module | None = None,
    loader: Iterable[Any] | None = None,
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """Write the average of checkpoints as a checkpoint that says what it was made of.

    >>> for epoch in (3, 7):
    ...     checkpoint = make_checkpoint("train", epoch, nn.Linear(2, 1), metrics={"loss": 0.5})
    ...     save_checkpoint(checkpoint, f"exp_{epoch}.pth")
    >>> checkpoint = save_average(["exp_3.pth", "exp_7.pth"], "swa.pth")
    >>> [(part["epoch"], part["weight"]) for part in load_checkpoint("swa.pth")["averaged"]]
    [(3, 0.5), (7, 0.5)]

    It has no optimizer. What was averaged is under "averaged": path, weight, stage, epoch and
    metrics of each.

    Args:
        model: Of the class that the weights belong to; it gets them, and with `loader` the
            statistics of batch norm (`update_bn`), which are stored then.
        loader: For `update_bn`.
        device: For `update_bn`.

    Returns:
        What was written.

    Raises:
        ValueError: A loader without a model; and as `average_checkpoints`.
    """
    if loader is not None and model is None:
        raise ValueError(
            "save_average was given a loader and no model to compute batch norm's with"
        )
    files = listed(paths)
    state = average_checkpoints(files, weights, dtype)
    if model is not None:
        model.load_state_dict(state)
        if loader is not None:
            update_bn(model, loader, device)
        state = state_of(model)
    kept = ("stage", "epoch", "metrics")
    averaged, counts = [], _counts(weights, len(files))
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

    Of a sharded manager they are directories, which `average_checkpoints` takes, too.

    Raises:
        ValueError: A number below 1.
        FileNotFoundError: No `metrics.json`, or fewer checkpoints than that; with what is there.
    """
    if number < 1:
        raise ValueError(f"best_checkpoints was asked for {number}; expected 1 or more")
    folder = Path(logdir)
    path = folder / NAME
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: a CheckpointManager writes it")
    metric, minimization, found, _ = read_history(path, inside=folder)
    sign = 1 if minimization else -1
    rows = [row for row in found if row.get(metric) is not None]
    ranked = sorted(rows, key=lambda row: sign * row[metric])
    ends = (".pth", ".dcp")
    names = [[folder / checkpoint_name(row["epoch"], end) for end in ends] for row in ranked]
    kept = [path for epoch in names for path in [path for path in epoch if path.exists()][:1]]
    if len(kept) < number:
        raise FileNotFoundError(
            f"{folder} has {len(kept)} exp_* with a score, not {number}: save_n_best of its "
            "CheckpointManager says how many are kept"
        )
    return kept[:number]


def _counts(weights: Sequence[float] | None, number: int) -> list[float]:
    """How much each file counts for."""
    if not number:
        raise ValueError("there are no checkpoints to average")
    own = [1.0] * number if weights is None else [float(weight) for weight in weights]
    if len(own) != number:
        raise ValueError(f"there are {len(own)} weights for {number} checkpoints")
    if not all(0 <= weight < math.inf for weight in own) or not sum(own):
        raise ValueError(f"the weights are {own}; expected positive numbers")
    return own


def _has_meta(value: Any) -> bool:
    found = []

    def look(leaf: Any, place: str) -> Any:  # noqa: ARG001
        found.append(isinstance(leaf, Tensor) and leaf.is_meta and leaf.numel() > 0)

    rebuilt(value, look)
    return any(found)


def _without_data(value: Any) -> Any:
    """Of an empty tensor, which no part has, a real one."""
    empty = isinstance(value, Tensor) and not value.numel()
    return torch.empty_like(value, device="cpu") if empty else value


def _parted(parts: list[Part], sources: list[Source]) -> tuple[list[Part], list[Part]]:
    """Those that lie alike in all files, and those of which some tensor does not."""
    alike: list[Part] = []
    unlike: list[Part] = []
    for part in parts:
        same = all(lies_alike(key, form, sources) for key, form in part.forms.items())
        (alike if same else unlike).append(part)
    return alike, unlike


def _shared_out(parts: list[Part], threads: int) -> list[list[Part]]:
    """Neighbouring parts for each thread, of about as many bytes."""
    ends = list(itertools.accumulate(part.size for part in parts))
    total = ends[-1] if ends else 0
    bounds = [bisect.bisect_left(ends, total * thread / threads) for thread in range(threads)]
    return [parts[begin:end] for begin, end in itertools.pairwise([*bounds, len(parts)])]
