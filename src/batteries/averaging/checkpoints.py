"""The average of checkpoint files, in the memory of one model."""

from __future__ import annotations

import bisect
import copy
import functools
import itertools
import json
import math
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from batteries.averaging.batch_norm import update_bn
from batteries.checkpoint.archive import Form, form_of, formed, is_plain, storage_bytes
from batteries.checkpoint.contents import rebuilt, state_of
from batteries.checkpoint.forms import is_sharded, peek, read_checkpoint
from batteries.checkpoint.storage import CheckpointError, is_state, save_checkpoint
from batteries.checkpoint.stream import BLOCK, Stream
from batteries.files import PathLike
from batteries.progress import tqdm

State = OrderedDict[str, Any]
_KEY = "model_state_dict"


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

    The files are read piece by piece, side by side, on as many threads as torch has: whatever
    their number, it takes the memory of one model, and a MiB for each file and thread. The
    average runs, `average.lerp_(weight, 1 / n)`, so that of copies of one model it is that model,
    bit by bit. Files are verified as `load_checkpoint` does it: those of `save_checkpoint` by the
    digest of the whole file, those of `torch.save` by the checksums of their records (they are
    read twice); nothing is returned if one is damaged. `.safetensors` have nothing to verify. A
    file whose tensors lie in another order or with other strides than in the first is read at
    once, and takes its size.

    Integer tensors of one element, such as batch norm's `num_batches_tracked`, become the largest;
    larger ones, such as tables of positions, are the first file's; bool ones must be the same in
    all files. The statistics of batch norm are averaged, which is not what they are of the average
    weights: `update_bn`.

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
        sources: list[_Source] = [_first(files[0], stack)]
        parts, first = sources[0].parts(), sources[0].state
        sources += [_another(path, sources[0], parts, stack) for path in files[1:]]
        state: State = OrderedDict((key, _without_data(value)) for key, value in first.items())
        threads, size = torch.get_num_threads(), sum(part.size for part in parts)
        bar = tqdm(desc="average", total=size, unit="B", unit_scale=True, leave=False, disable=None)
        with bar, ThreadPoolExecutor(threads) as pool:
            work = functools.partial(_average_some, sources, counts, dtype, bar)
            for averaged in pool.map(work, _shared_out(parts, threads)):
                state.update(averaged)
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
        FileNotFoundError: No `metrics.json`, or fewer checkpoints than that; with what is there.
    """
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

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.forms.values())).dtype


class _Source:
    """A checkpoint file whose parts are read one after the other."""

    path: Path
    state: Mapping[str, Any]  # tensors are empty, or not

    def parts(self) -> list[_Part]:
        """The parts in the order in which they can be read."""
        raise NotImplementedError

    def room(self, index: int, at: int) -> int:
        """How many bytes of a part `read` gives at most, from there."""
        raise NotImplementedError

    def read(self, index: int, at: int, size: int) -> Tensor:
        """Bytes of a part."""
        raise NotImplementedError

    def again(self) -> _Source:
        """The same with a place of its own, for another thread."""
        same = copy.copy(self)
        same.rewind()
        return same

    def rewind(self) -> None:
        """Begin anew, with memory of its own."""
        raise NotImplementedError


class _Streamed(_Source):
    def __init__(self, stream: Stream) -> None:
        self.path = stream.path
        self.state = _state_in(stream.contents, stream.path)
        self._stream, self._cursor = stream, stream.cursor()
        tensors = {k: v for k, v in self.state.items() if isinstance(v, Tensor) and v.numel()}
        self._offsets = sorted({stream.offset(tensor) for tensor in tensors.values()})
        parts: dict[int, _Part] = {}
        for key, tensor in tensors.items():
            size = tensor.untyped_storage().nbytes()
            part = parts.setdefault(stream.offset(tensor), _Part(size, {}))
            part.forms[key] = form_of(tensor)
            if part.dtype != tensor.dtype or (size | stream.offset(tensor)) % tensor.itemsize:
                raise CheckpointError(
                    f"{_name(key)} in {self.path} shares its memory with another dtype, or is not "
                    "aligned in it: cannot average it"
                )
        self._parts = [parts[offset] for offset in self._offsets]

    def parts(self) -> list[_Part]:
        return self._parts

    def room(self, index: int, at: int) -> int:
        return self._cursor.room(self._offsets[index] + at)

    def read(self, index: int, at: int, size: int) -> Tensor:
        return self._cursor.read(self._offsets[index] + at, size)

    def rewind(self) -> None:
        self._cursor = self._stream.cursor()


class _Whole(_Source):
    """A file that was read at once, its tensors laid out as another file has them."""

    def __init__(self, path: Path, state: Mapping[str, Any], parts: list[_Part]) -> None:
        self.path, self.state, self._parts = path, state, parts
        self.rewind()

    def rewind(self) -> None:
        self._index, self._bytes = -1, torch.empty(0)

    def parts(self) -> list[_Part]:
        return self._parts

    def room(self, index: int, at: int) -> int:  # noqa: ARG002
        return BLOCK

    def read(self, index: int, at: int, size: int) -> Tensor:
        if self._index != index:
            part = self._parts[index]
            storage = torch.empty(part.size, dtype=torch.uint8).untyped_storage()
            for key, form in part.forms.items():
                formed(storage, form).detach().copy_(self.state[key])
            self._index, self._bytes = index, storage_bytes(storage)
        return self._bytes[at : at + size]


def _first(path: Path, stack: ExitStack) -> _Source:
    """The file that says in which order the parts are read."""
    if _is_streamable(path):
        return _Streamed(stack.enter_context(Stream.opened(path)))
    state = peek(path)[_KEY]
    parts = []
    for key, value in state.items():
        form = form_of(torch.empty_like(value, memory_format=torch.contiguous_format))
        parts.append(_Part(value.numel() * value.itemsize, {key: form}))
    return _Whole(path, read_checkpoint(path)[_KEY], parts)


def _another(path: Path, first: _Source, parts: list[_Part], stack: ExitStack) -> _Source:
    if _is_streamable(path):
        streamed = _Streamed(stack.enter_context(Stream.opened(path)))
        _check_alike(first, streamed)
        if streamed.parts() == parts:
            return streamed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a bare state dict has no optimizer
        whole = _Whole(path, _state_in(read_checkpoint(path), path), parts)
    _check_alike(first, whole)
    return whole


def _is_streamable(path: Path) -> bool:
    if is_sharded(path):
        raise CheckpointError(
            f"{path} is sharded: make a file of it first, with checkpoint.consolidate(path, out)"
        )
    return path.suffix != ".safetensors"


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
    return state


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


def _shared_out(parts: list[_Part], threads: int) -> list[range]:
    """Neighbouring parts for each thread, of about as many bytes."""
    ends = list(itertools.accumulate(part.size for part in parts))
    total = ends[-1] if ends else 0
    bounds = [bisect.bisect_left(ends, total * thread / threads) for thread in range(threads)]
    return [range(*pair) for pair in itertools.pairwise([*bounds, len(parts)])]


def _average_some(
    sources: list[_Source],
    weights: list[float],
    dtype: torch.dtype,
    bar: tqdm,
    indices: range,
) -> dict[str, Tensor]:
    """The averages of some parts, by the names of their tensors."""
    own = [source.again() for source in sources] if indices else []
    averaged = {}
    for index in indices:
        storage = _average(index, own, weights, dtype)
        forms = own[0].parts()[index].forms
        averaged.update({key: formed(storage, form) for key, form in forms.items()})
        bar.update(own[0].parts()[index].size)
    return averaged


def _average(
    index: int, sources: list[_Source], weights: list[float], dtype: torch.dtype
) -> torch.UntypedStorage:
    """One part of all sources, averaged piece by piece while the processor has the pieces."""
    part = sources[0].parts()[index]
    storage = torch.empty(part.size, dtype=torch.uint8).untyped_storage()
    room, at = storage_bytes(storage), 0
    while at < part.size:
        size = min(part.size - at, *(source.room(index, at) for source in sources))
        pieces = _Pieces(sources, index, at, size, part.dtype)
        piece = room[at : at + size].view(part.dtype)
        if part.dtype.is_floating_point or part.dtype.is_complex:
            _average_numbers(piece, pieces, weights, torch.promote_types(part.dtype, dtype))
        elif part.dtype == torch.bool:
            _agree(piece, pieces, sources, next(iter(part.forms)))
        elif part.size == part.dtype.itemsize:  # a counter
            piece.copy_(torch.stack([value.clone() for value in pieces]).amax(0))
        else:
            piece.copy_(next(iter(pieces)))
        at += size
    return storage


@dataclass
class _Pieces:
    """The same piece of each source; it can be gone through again until the next one is read."""

    sources: list[_Source]
    index: int
    at: int
    size: int
    dtype: torch.dtype

    def __iter__(self) -> Iterator[Tensor]:
        for source in self.sources:
            yield source.read(self.index, self.at, self.size).view(self.dtype)


def _average_numbers(
    room: Tensor, pieces: Iterable[Tensor], weights: list[float], exact: torch.dtype
) -> None:
    average, total = room if room.dtype == exact else room.to(exact), 0.0
    for piece, weight in zip(pieces, weights, strict=True):
        total += weight
        if weight and total == weight:
            average.copy_(piece)
        elif weight:
            average.lerp_(piece.to(exact), weight / total)
    if not average.sum().isfinite():
        average.copy_(_with_infinities(pieces, weights))
    if average is not room:
        room.copy_(average)


def _with_infinities(pieces: Iterable[Tensor], weights: list[float]) -> Tensor:
    """The average where masks have -inf, of which the running one would make NaN."""
    counted = [
        (piece.to(torch.promote_types(piece.dtype, torch.float64)), weight)
        for piece, weight in zip(pieces, weights, strict=True)
        if weight
    ]
    first = counted[0][0]
    same = torch.stack([piece == first for piece, _ in counted]).all(0)
    mean = torch.stack([piece * (weight / sum(weights)) for piece, weight in counted]).sum(0)
    return torch.where(same, first, mean)


def _agree(room: Tensor, pieces: Iterable[Tensor], sources: list[_Source], key: str) -> None:
    for source, piece in zip(sources, pieces, strict=True):
        if source is sources[0]:
            room.copy_(piece)
        elif not torch.equal(room, piece):
            raise CheckpointError(
                f"{_name(key)} is bool and not the same in {sources[0].path} and {source.path}: "
                "there is no average of them"
            )
