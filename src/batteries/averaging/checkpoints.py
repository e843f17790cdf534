"""The average of checkpoint files, in the memory of one model."""

from __future__ import annotations

import bisect
import copy
import functools
import itertools
import json
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from batteries.averaging.batch_norm import update_bn
from batteries.checkpoint.archive import Form, form_of, formed, is_plain
from batteries.checkpoint.contents import rebuilt, state_of
from batteries.checkpoint.forms import is_sharded, peek, read_checkpoint
from batteries.checkpoint.storage import CheckpointError, is_state, save_checkpoint
from batteries.checkpoint.stream import Stream
from batteries.files import PathLike
from batteries.progress import tqdm

State = OrderedDict[str, Any]
_KEY = "model_state_dict"
_BLOCKS = 32  # of a MiB, that threads hold together


def average_checkpoints(
    paths: Iterable[PathLike],
    weights: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
) -> State:
    """The average of the weights in checkpoint files, as the state dict of a model.

    >>> for epoch in (1, 2):
    ...     state = {"weight": torch.full((2,), float(epoch))}
    ...     save_checkpoint({"model_state_dict": state}, f"exp_{epoch}.pth")
    >>> average_checkpoints(["exp_1.pth", "exp_2.pth"])["weight"]
    tensor([1.5000, 1.5000])

    The files are read piece by piece, side by side: it takes the memory of one model and a MiB for
    each file, or up to 32 in all where torch has threads for more. Tensors are found by name, in
    any order. One that has other strides in some file is read as a whole, of one file after the
    other, which takes a few times its memory.

    The average runs, `average.lerp_(weight, 1 / n)`, so that of copies of one model it is that
    model, bit by bit. Files are verified as `load_checkpoint` does it: those of `save_checkpoint`
    by the digest of the whole file, those of `torch.save` by the checksums of their records (they
    are read twice); nothing is returned if one is damaged. `.safetensors` have nothing to verify.

    Integer tensors of one element, such as batch norm's `num_batches_tracked`, become the largest;
    larger ones, such as tables of positions, are the first file's; bool ones must be the same in
    all files. The statistics of batch norm are averaged, which is not what they are of the average
    weights: `update_bn`. Memory that tensors share in the first file they share in the average.

    Args:
        weights: How much each file counts for; their sum does not matter. Default: all the same.
        dtype: What is computed in, at least: float64 tensors are averaged in float64. The result
            has the dtypes of the files.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No files, or weights that are not positive numbers, one for each file.
        CheckpointError: A damaged file, or another model: with the file and the name.
    """
    files = [Path(path) for path in paths]
    counts = _counts(weights, len(files))
    with ExitStack() as stack:
        sources = [_opened(path, stack) for path in files]
        for another in sources[1:]:
            _check_alike(sources[0], another)
        parts, first = sources[0].parts(), sources[0].state
        state: State = OrderedDict((key, _without_data(value)) for key, value in first.items())
        alike, unlike = _parted(parts, sources)
        threads = min(torch.get_num_threads(), max(1, _BLOCKS // len(files)))
        size = sum(part.size for part in parts)
        bar = tqdm(desc="average", total=size, unit="B", unit_scale=True, leave=False, disable=None)
        work = functools.partial(_average_some, sources, counts, dtype, bar)
        with bar, ThreadPoolExecutor(threads) as pool:
            for averaged in pool.map(work, _shared_out(alike, threads)):
                state.update(averaged)
            state.update(work(unlike))
    for key in [key for key, value in state.items() if _has_meta(value)]:  # an extra state
        state[key] = _state_in(read_checkpoint(files[0]), files[0])[key]
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
    files = [Path(path) for path in paths]
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
    checkpoint = {"stage": "average", _KEY: state, "averaged": averaged}
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

    Raises:
        ValueError: A number below 1.
        FileNotFoundError: No `metrics.json`, or fewer checkpoints than that; with what is there.
    """
    if number < 1:
        raise ValueError(f"best_checkpoints was asked for {number}; expected 1 or more")
    folder = Path(logdir)
    path = folder / "metrics.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: a CheckpointManager writes it")
    memory = json.loads(path.read_text())
    metric, sign = memory["metric_name"], 1 if memory["metric_minimization"] else -1
    rows = [row for row in memory["values"] if row[metric] is not None]
    ranked = sorted(rows, key=lambda row: sign * row[metric])
    kept = [folder / f"exp_{row['epoch']}.pth" for row in ranked]
    kept = [path for path in kept if path.exists()]
    if len(kept) < number:
        raise FileNotFoundError(
            f"{folder} has {len(kept)} exp_*.pth with a score, not {number}: save_n_best of its "
            "CheckpointManager says how many are kept"
        )
    return kept[:number]


# ---------------------------------------------------------------- what is averaged


@dataclass
class _Part:
    """Memory that one or several tensors of a state lie in."""

    size: int  # bytes
    forms: dict[str, Form]  # of the tensors, by their names


class _Source:
    """A checkpoint file whose tensors are read by name, in any order."""

    def __init__(self, stream: Stream) -> None:
        self.path = stream.path
        self.state = _state_in(stream.contents, stream.path)
        self._stream, self._cursor = stream, stream.cursor()
        self._tensors = {
            key: value
            for key, value in self.state.items()
            if isinstance(value, Tensor) and value.numel()
        }
        self._begins = {  # in the file
            key: stream.offset(tensor) + int(tensor.storage_offset()) * tensor.itemsize
            for key, tensor in self._tensors.items()
        }

    def parts(self) -> list[_Part]:
        """The memory of all tensors, in the order of the file; what shares it shares it here."""
        parts: dict[tuple[int, str], _Part] = {}
        for key, tensor in self._tensors.items():
            form, size, place = form_of(tensor), tensor.untyped_storage().nbytes(), ""
            if _reach(tensor) < tensor.numel():  # an expanded one, in full
                form = form_of(torch.empty_like(tensor, memory_format=torch.contiguous_format))
                size, place = tensor.nbytes, key
            part = parts.setdefault((self._stream.offset(tensor), place), _Part(size, {}))
            part.forms[key] = form
            if next(iter(part.forms.values())).dtype != form.dtype:
                raise CheckpointError(
                    f"{_name(key)} in {self.path} shares its memory with another dtype: cannot "
                    "average it"
                )
        return [part for _, part in sorted(parts.items(), key=lambda item: item[0])]

    def lies_as(self, key: str, form: Form) -> bool:
        """Whether a tensor's bytes stand in the file in one piece, in the order of a form."""
        tensor = self._tensors[key]
        whole = _reach(tensor) == tensor.numel() and not self._begins[key] % tensor.itemsize
        return whole and _steps(tensor.size(), tensor.stride()) == _steps(form.size, form.stride)

    def room(self, key: str, at: int) -> int:
        """How many bytes of a tensor `read` gives at most, from there."""
        return self._cursor.room(self._begins[key] + at)

    def read(self, key: str, at: int, size: int) -> Tensor:
        """Bytes of a tensor; the memory is used again."""
        return self._cursor.read(self._begins[key] + at, size)

    def size(self, key: str) -> int:
        """How many bytes there are from the first element of a tensor to its last."""
        return _reach(self._tensors[key]) * self._tensors[key].itemsize

    def tensor(self, key: str, memory: Tensor) -> Tensor:
        """A tensor as a whole, in (at least `size`,) uint8."""
        tensor, data, at = self._tensors[key], memory[: self.size(key)], 0
        while at < len(data):
            piece = self.read(key, at, min(len(data) - at, self.room(key, at)))
            data[at : at + len(piece)] = piece
            at += len(piece)
        return data.view(tensor.dtype).as_strided(tensor.size(), tensor.stride())

    def again(self) -> _Source:
        """The same with a place of its own, for another thread."""
        same = copy.copy(self)
        same._cursor = self._stream.cursor()
        return same


def _reach(tensor: Tensor) -> int:
    """From the first element of a tensor to its last, in elements of its memory."""
    steps = zip(tensor.size(), tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in steps)


def _steps(size: Iterable[int], stride: Iterable[int]) -> list[tuple[int, int]]:
    """How a tensor lies: where a dimension has one element, its stride does not matter."""
    return [(number, step) for number, step in zip(size, stride, strict=True) if number > 1]


def _opened(path: Path, stack: ExitStack) -> _Source:
    if is_sharded(path):
        raise CheckpointError(
            f"{path} is sharded: make a file of it first, with checkpoint.consolidate(path, out)"
        )
    return _Source(stack.enter_context(Stream.opened(path)))


def _state_in(contents: Any, path: Path) -> Mapping[str, Any]:
    """The weights in a checkpoint, or in the bare state dict of a model."""
    bare = (
        isinstance(contents, Mapping) and _KEY not in contents and contents and is_state(contents)
    )
    state = contents if bare else contents.get(_KEY) if isinstance(contents, Mapping) else None
    if not isinstance(state, Mapping):
        found = ", ".join(map(str, contents)) if isinstance(contents, Mapping) else type(contents)
        raise CheckpointError(f"{path} has no {_KEY} to average; found {found}")
    for key, value in state.items():
        if isinstance(value, Tensor) and not is_plain(value):
            raise CheckpointError(
                f"{_name(key)} in {path} is not a dense tensor: cannot average it"
            )
        if isinstance(value, Tensor) and not _can_compute_with(value.dtype):
            raise CheckpointError(
                f"{_name(key)} in {path} is {_described(value)}: torch cannot compute with it; "
                "average its values in another dtype"
            )
    return state


def _can_compute_with(dtype: torch.dtype) -> bool:
    if dtype.itemsize > 1 or not dtype.is_floating_point:
        return True
    try:
        torch.zeros(1, dtype=torch.uint8).view(dtype).float().to(dtype)
    except RuntimeError:  # numbers of four bits, two in a byte
        return False
    return True


def _check_alike(first: _Source, other: _Source) -> None:
    """Raise if two files have other names, shapes or dtypes."""
    for here, there in ((first, other), (other, first)):
        for key in here.state:
            if key not in there.state:
                raise CheckpointError(
                    f"{_name(key)} is in {here.path} but not in {there.path}: average checkpoints "
                    "of one model"
                )
    for key, value in first.state.items():
        forms = _described(value), _described(other.state[key])
        if forms[0] != forms[1]:
            raise CheckpointError(
                f"{_name(key)} is {forms[0]} in {first.path} but {forms[1]} in {other.path}: "
                "average checkpoints of one model"
            )


def _name(key: str) -> str:
    return f"{_KEY}[{key!r}]"


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


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


# ---------------------------------------------------------------- averaging


def _parted(parts: list[_Part], sources: list[_Source]) -> tuple[list[_Part], list[_Part]]:
    """Those that lie alike in all files, and those of which some tensor does not."""
    alike: list[_Part] = []
    unlike: list[_Part] = []
    for part in parts:
        same = all(source.lies_as(*item) for source in sources for item in part.forms.items())
        (alike if same else unlike).append(part)
    return alike, unlike


def _shared_out(parts: list[_Part], threads: int) -> list[list[_Part]]:
    """Neighbouring parts for each thread, of about as many bytes."""
    ends = list(itertools.accumulate(part.size for part in parts))
    total = ends[-1] if ends else 0
    bounds = [bisect.bisect_left(ends, total * thread / threads) for thread in range(threads)]
    return [parts[begin:end] for begin, end in itertools.pairwise([*bounds, len(parts)])]


def _average_some(
    sources: list[_Source],
    weights: list[float],
    dtype: torch.dtype,
    bar: tqdm,
    parts: list[_Part],
) -> dict[str, Tensor]:
    """The averages of some parts, by the names of their tensors."""
    own = [source.again() for source in sources] if parts else []
    averaged = {}
    for part in parts:
        storage = _memory_for(part)
        tensors = {key: formed(storage, form) for key, form in part.forms.items()}
        done = set()
        for key, form in part.forms.items():
            place = form.offset, form.size, form.stride
            if place not in done:  # of tied ones the first
                done.add(place)
                _average(key, form, tensors[key].detach(), own, weights, dtype)
        averaged.update(tensors)
        bar.update(part.size)
    return averaged


def _memory_for(part: _Part) -> torch.UntypedStorage:
    """New memory; what no tensor lies in is zero, and not what the process had there."""
    filled = any(f.size.numel() * f.dtype.itemsize == part.size for f in part.forms.values())
    make = torch.empty if filled else torch.zeros
    return make(part.size, dtype=torch.uint8).untyped_storage()


def _average(
    key: str,
    form: Form,
    room: Tensor,
    sources: list[_Source],
    weights: list[float],
    dtype: torch.dtype,
) -> None:
    """One tensor of all sources, piece by piece while the processor has the pieces.

    If it does not lie alike in all of them: as a whole, of one source after the other.
    """
    if not all(source.lies_as(key, form) for source in sources):
        # one for all: memory that comes and goes leaves holes between what stays
        memory = torch.empty(max(source.size(key) for source in sources), dtype=torch.uint8)
        values = _Values(sources, lambda source: source.tensor(key, memory))
        _combine(room, values, key, form, weights, dtype)
        return
    at, end = 0, form.size.numel() * form.dtype.itemsize
    flat = room.as_strided((form.size.numel(),), (1,))
    while at < end:
        size = min(end - at, *(source.room(key, at) for source in sources))
        read = functools.partial(_piece, key=key, at=at, size=size, dtype=form.dtype)
        start, stop = at // form.dtype.itemsize, (at + size) // form.dtype.itemsize
        _combine(flat[start:stop], _Values(sources, read), key, form, weights, dtype)
        at += size


def _piece(source: _Source, key: str, at: int, size: int, dtype: torch.dtype) -> Tensor:
    return source.read(key, at, size).view(dtype)


@dataclass
class _Values:
    """The same tensor, or piece of it, of each source; it can be gone through again."""

    sources: list[_Source]
    read: Callable[[_Source], Tensor]

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.read, self.sources)


def _combine(
    room: Tensor, values: _Values, key: str, form: Form, weights: list[float], dtype: torch.dtype
) -> None:
    if form.dtype.is_complex:
        reals = _Values(values.sources, lambda source: torch.view_as_real(values.read(source)))
        exact = _precise(form.dtype.to_real(), dtype)
        _average_numbers(torch.view_as_real(room), reals, weights, exact)
    elif form.dtype.is_floating_point:
        _average_numbers(room, values, weights, _precise(form.dtype, dtype))
    elif form.dtype == torch.bool:
        _agree(room, values, key)
    elif form.size.numel() == 1:  # a counter
        room.copy_(max((value.clone() for value in values), key=int))
    else:
        room.copy_(next(iter(values)))


def _precise(dtype: torch.dtype, at_least: torch.dtype) -> torch.dtype:
    known = torch.float32 if dtype.itemsize == 1 else dtype  # torch promotes no float8
    return torch.promote_types(known, at_least)


def _average_numbers(
    room: Tensor, values: Iterable[Tensor], weights: list[float], exact: torch.dtype
) -> None:
    average = room if room.dtype == exact else torch.empty_like(room, dtype=exact)
    total, signed = 0.0, False
    for value, weight in zip(values, weights, strict=True):
        total += weight
        if weight and total == weight:
            signed = _has_minus_zero(average.copy_(value))
        elif weight:
            average.lerp_(value.to(exact), weight / total)
    least, most = map(float, average.aminmax())
    if signed or not -math.inf < least <= most < math.inf:
        _mend(average, values, weights)
    if average is not room:
        room.copy_(average)


def _has_minus_zero(tensor: Tensor) -> bool:
    """Whether -0.0 is in it: as an integer, its bits are the least of all."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize]
    return int(tensor.view(integer).amin()) == torch.iinfo(integer).min


def _mend(average: Tensor, values: Iterable[Tensor], weights: list[float]) -> None:
    """Put in what the running average has not: infinities, of masks, and the signs of zeros."""
    wrong = ~average.isfinite() | (average == 0)
    first, same, mean = None, torch.tensor(True), torch.tensor(0.0)
    for value, weight in zip(values, weights, strict=True):
        if weight:
            part = value.to(average.dtype)[wrong].double()
            first = part if first is None else first
            same, mean = same & (part == first), mean + part * (weight / sum(weights))
    assert first is not None
    average[wrong] = torch.where(same, first, mean).to(average.dtype)


def _agree(room: Tensor, values: _Values, key: str) -> None:
    first = values.sources[0]
    for source, value in zip(values.sources, values, strict=True):
        if source is first:
            room.copy_(value)
        elif not torch.equal(room, value):
            raise CheckpointError(
                f"{_name(key)} is bool and not the same in {first.path} and {source.path}: there "
                "is no average of them"
            )
