"""Predictions of all ranks, gathered in the order of the dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from batteries import distributed
from batteries._files import PathLike
from batteries._numbers import as_whole
from batteries.distributed._agreement import Transfer
from batteries.distributed._groups import Group, ranks_of
from batteries.distributed._messages import is_sharded
from batteries.distributed._messages import pickled as _pickle
from batteries.predictions._each_once import Form, Indices, Result, each_once
from batteries.predictions._files import write
from batteries.predictions._rows import Part, bring


class Gathered(tuple[Any, ...]):
    """Arrays of all samples: a tuple in the order of `add`'s arguments.

    >>> arrays = Gathered({"logits": torch.zeros(8, 10), "labels": torch.arange(8)})
    >>> logits, labels = arrays
    >>> arrays.labels is labels
    True

    Each array is also an attribute. Its name is that of the argument of `add`.
    """

    def __new__(cls, arrays: Mapping[str, Any]) -> Gathered:
        gathered = super().__new__(cls, arrays.values())
        vars(gathered).update(arrays)  # an array called "count" hides the tuple's own method
        return gathered

    def __getattr__(self, name: str) -> Any:
        known = ", ".join(vars(self)) or "no arrays, since none were added"
        raise AttributeError(f"there is no {name!r} among {known}")

    def __reduce__(self) -> Any:
        return Gathered, (dict(vars(self)),)


class Predictions:
    """One prediction for each sample of a dataset, on any number of processes.

    >>> outputs = Predictions(3)
    >>> outputs.add([2, 0], probability=torch.tensor([0.5, 0.25]), target=torch.tensor([1, 0]))
    >>> outputs.add([1], probability=torch.tensor([0.75]), target=torch.tensor([1]))
    >>> probability, target = outputs.gather()
    >>> probability
    tensor([0.2500, 0.7500, 0.5000])

    Each rank adds its predictions with the indices of their samples in the dataset, such as
    `loader.indices` of `batteries.data.DataLoader`. `gather` puts the rows of all ranks in the
    order of the dataset, so a metric of the result equals that of a run on one process.

    Args:
        length: The number of samples in the dataset.
        duplicates: "raise" refuses a sample that was added twice. "drop" keeps its first row: use
            it with torch's `DistributedSampler`, which repeats samples. The rows must then agree:
            floats as `torch.isclose` says, everything else exactly.
        group: The ranks that gather together: the loader's `group`. Default: all ranks.

    Raises:
        ValueError: `duplicates` is neither "raise" nor "drop", the length is below 0, or this
            process is not in the group.
        TypeError: The length is not a whole number, or `group` is no group.
    """

    def __init__(
        self,
        length: int,
        duplicates: Literal["raise", "drop"] = "raise",
        *,
        group: Group = None,
    ) -> None:
        length = as_whole(length, "length", 0, " samples")
        if duplicates not in ("raise", "drop"):
            raise ValueError(f"duplicates is {duplicates!r}; expected 'raise' or 'drop'")
        self._length = length
        self._drops = duplicates == "drop"
        self._group = group
        ranks_of(group)  # raises if the group is not usable
        self._forms: list[Form] = []
        self._indices: list[Indices] = []
        self._rows: dict[str, list[Any]] = {}  # batches of tensors, or of objects
        # int64 would take twice the memory of a float32 prediction.
        self._places = np.dtype(np.int32 if length < 2**31 else np.int64)

    def add(self, indices: Iterable[int] | Tensor, **arrays: ArrayLike | Sequence[Any]) -> None:
        """Add the predictions for a batch.

        >>> Predictions(8).add(range(2), logits=torch.zeros(2, 10), name=["a", "b"])

        Args:
            indices: The indices of the samples in the dataset, (batch,).
            **arrays: Tensors or numpy arrays, (batch, ...), which keep their dtype and are copied
                to the CPU. Or a list with one object a sample, which pickle can store.

        Raises:
            IndexError: An index lies outside of the dataset.
            ValueError: The arrays have another length than the indices, or other names, dtypes or
                shapes, or another order, than in the batches before. Or the indices are not
                integers, (batch,). Or an argument is no array, or has a dtype or a layout that
                `gather` cannot send. Or there are no arrays.
            Exception: An object cannot be pickled. The error is that of pickle.
        """
        own = _as_indices(indices)
        if not arrays:
            raise ValueError("add got indices but no predictions: pass arrays by name")
        if len(own) and not (own.min() >= 0 and own.max() < self._length):
            outside = own[(own < 0) | (own >= self._length)]
            raise IndexError(
                f"index {outside[0]} is outside of a dataset of {self._length} samples"
            )
        rows = {name: _as_rows(name, value) for name, value in arrays.items()}
        for name, value in rows.items():
            if len(value) != len(own):
                raise ValueError(
                    f"{name} has {len(value)} rows for {len(own)} indices; expected one for each"
                )
        forms = [_form_of(name, value) for name, value in rows.items()]
        if self._forms and forms != self._forms:
            raise ValueError(
                f"a batch has {_described(forms)}, the ones before {_described(self._forms)}: add "
                "arrays of the same names, dtypes and shapes, in the same order"
            )
        self._forms = forms
        self._indices.append(own.astype(self._places))
        for name, value in rows.items():
            self._rows.setdefault(name, []).append(value)

    def gather(self, dst: int | None = None) -> Gathered:
        """Return the arrays in the order of the dataset. All ranks call it.

        Tensors are sent in pieces. Beside the result, a rank needs memory for its own rows and a
        few pieces of 4 MiB. Objects are pickled, so the processes must trust each other.

        Args:
            dst: The rank of the group that gets the arrays. The others get None for each array.
                Default: all ranks get them.

        Returns:
            Tensors, (length, ...), on the CPU, and lists of objects. Unpack them in the order of
            `add`'s arguments, or take them by name. For a dataset of 0 samples without
            a batch, the result is empty.

        Raises:
            ValueError: Samples are missing or were added more than once, duplicates do not agree,
                the ranks have added different arrays or called `Predictions` or `gather` with
                different arguments, or `dst` is not a rank of the group. Every rank raises it.
            TypeError: `dst` is not a whole number.
        """
        return Gathered(self._gathered(dst))

    def save(self, path: PathLike, ids: Iterable[Any] | None = None) -> None:
        """Write the arrays to one file, whole or not at all. All ranks of the group call it.

        >>> outputs = Predictions(2)
        >>> outputs.add([0, 1], probability=torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
        >>> outputs.save("valid.parquet", ids=["a", "b"])
        >>> load("valid.parquet")["probability"][0]
        array([0.25, 0.75], dtype=float32)

        Args:
            path: A file `.parquet`, or `.npy` for large arrays: one structured array, which `load`
                maps into memory. Floats of 16 bits or fewer become float32. Rank 0 of the group
                writes the file.
            ids: The samples' ids, (length,). Default: their indices. Only those of rank 0 of the
                group are written.

        Raises:
            ValueError: The path has another suffix, the ids have another length, an array is called
                "id", or `gather` raises it.
            TypeError: The file cannot hold the objects, or would lose a part of them, such as a key
                that the first dict lacks.
            OSError: The file cannot be written.
            ModuleNotFoundError: A `.parquet` file needs polars, which is not installed.
        """
        columns = self._gathered(0)
        main = ranks_of(self._group).rank == 0
        distributed.together(
            lambda: write(Path(path), columns, ids) if main else None, group=self._group
        )

    def _gathered(self, dst: int | None) -> dict[str, Any]:
        group = ranks_of(self._group)
        dst = None if dst is None else as_whole(dst, "dst")
        if dst is not None and not 0 <= dst < group.size:
            raise ValueError(f"dst is {dst}; expected a rank, 0 to {group.size - 1}")
        indices, rows = self._joined()
        own = Part.of((self._length, self._drops, dst), self._forms, indices, rows)
        parts = distributed.all_gather(own, group=self._group)
        first = next((at for at, part in enumerate(parts) if part.forms), 0)
        forms = parts[first].forms
        for number, part in enumerate(parts):
            if part.asked != parts[first].asked or part.forms not in ([], forms):
                raise ValueError(
                    f"the ranks have different predictions: rank {number} has {_told(part)}, rank "
                    f"{first} has {_told(parts[first])}; make equal calls on all ranks"
                )
        whole = each_once([part.spaced for part in parts], self._length)
        here = dst in (None, group.rank)
        result = Result(self._length, forms, self._drops, whole) if here else None
        bring(parts, indices, rows, result, dst, Transfer("Predictions.gather", ranks=group))
        if dst is None:  # all ranks have the same result, so all raise the same error
            assert result is not None
            return result.checked()
        nothing = dict.fromkeys(form.name for form in forms)
        return distributed.together(
            result.checked if result else lambda: nothing, group=self._group
        )

    def _joined(self) -> tuple[Indices, list[Any]]:
        """Join this rank's batches in place; return its indices and rows."""
        if len(self._indices) > 1 or not all(isinstance(part, range) for part in self._indices):
            parts = [np.asarray(part, dtype=self._places) for part in self._indices]
            self._indices = [_spaced(np.concatenate(parts))]
            for name, batches in self._rows.items():
                objects = isinstance(batches[0], list)
                self._rows[name] = [list(chain(*batches)) if objects else torch.cat(batches)]
        rows = [batches[0] for batches in self._rows.values()]
        return self._indices[0] if self._indices else range(0), rows


# ---------------------------------------------------------------- the arguments of `add`


def _as_indices(indices: Iterable[int] | Tensor) -> NDArray[np.int64]:
    if isinstance(indices, Tensor):
        given = indices.cpu().numpy()
    else:
        given = np.asarray(list(indices) if isinstance(indices, Iterable) else indices)
    if given.ndim != 1 or not (len(given) == 0 or np.issubdtype(given.dtype, np.integer)):
        raise ValueError(
            f"indices have shape {given.shape} and dtype {given.dtype}; expected integers, (batch,)"
        )
    return given.astype(np.int64)


def _as_rows(name: str, value: Any) -> Any:
    """A copy on the CPU, because the caller may overwrite its memory."""
    if isinstance(value, list | tuple):
        # Pickled now, so that an object that cannot be pickled raises here.
        return [_pickle(item) for item in value]
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(f"{name} is a masked array: pass {name}.filled(...)")
    if hasattr(value, "__array__") and not isinstance(value, Tensor):  # of numpy, or a column
        value = np.asarray(value)
        try:  # the copy is writable, has positive strides and the native byte order
            value = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
        except TypeError as error:
            raise ValueError(f"{name} is an array of {value.dtype}: pass a list") from error
    if not isinstance(value, Tensor) or value.dim() == 0:
        kind = "one number" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(f"{name} is {kind}; expected a row for each index: a tensor or a list")
    for kind, found, remedy in (
        ("a jagged tensor", value.is_nested, "a list of tensors, list({}.unbind())"),
        ("a sparse tensor", value.layout != torch.strided, "{}.to_dense()"),
        ("a quantized tensor", value.is_quantized, "{}.dequantize()"),
        ("a DTensor", is_sharded(value), "{}.full_tensor(), or {}.to_local() with its indices"),
        ("on the meta device", value.is_meta, "tensors with data"),
    ):
        if found:
            raise ValueError(f"{name} is {kind}: pass {remedy.format(name, name)}")
    return value.detach().resolve_conj().resolve_neg().to("cpu", copy=True)


def _form_of(name: str, rows: Any) -> Form:
    if isinstance(rows, list):
        return Form(name, "", ())
    return Form(name, str(rows.dtype).removeprefix("torch."), tuple(rows.shape[1:]))


def _described(forms: list[Form]) -> str:
    told = [f"{f.name}: {f'{f.dtype} {f.shape}' if f.dtype else 'objects'}" for f in forms]
    return ", ".join(told) or "nothing"


def _told(part: Part) -> str:
    length, drops, dst = part.asked
    duplicates = "drop" if drops else "raise"
    return f"{_described(part.forms)} (length={length}, duplicates={duplicates!r}, dst={dst})"


def _spaced(indices: NDArray[np.integer]) -> Indices:
    """The same indices, as a range if they are equally spaced."""
    if not len(indices):
        return range(0)
    first, last = int(indices[0]), int(indices[-1])
    step = int(indices[1]) - first if len(indices) > 1 else 1
    spaced = step > 0 and bool((np.diff(indices) == step).all())
    return range(first, last + 1, step) if spaced else indices
