"""What ranks have predicted, and how it comes together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batteries import distributed
from batteries._files import PathLike
from batteries.distributed._agreement import Transfer
from batteries.distributed._groups import Group, ranks_of
from batteries.distributed._messages import is_sharded
from batteries.distributed._messages import pickled as _pickle
from batteries.predictions._files import write
from batteries.predictions._parts import Part, bring
from batteries.predictions._result import Form, Indices, Result, each_once


class Gathered(tuple[Any, ...]):
    """Arrays of all samples, in the order of `add`'s arguments, and by their names.

    >>> arrays = Gathered({"logits": torch.zeros(8, 10), "labels": torch.arange(8)})
    >>> logits, labels = arrays
    >>> arrays.labels is labels
    True
    """

    def __new__(cls, arrays: Mapping[str, Any]) -> Gathered:
        gathered = super().__new__(cls, arrays.values())
        vars(gathered).update(arrays)  # before what a tuple has: an array may be called "count"
        return gathered

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"there is no {name!r} among {', '.join(vars(self))}")

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

    Each rank adds what it has predicted, with the indices of the samples in the dataset:
    `loader.indices` of `batteries.data.DataLoader`. `gather` puts the rows of all ranks in the
    order of the dataset. A metric of what it returns is that of one process.

    Args:
        length: The samples of the dataset.
        duplicates: "drop" lets a sample come more than once, as torch's `DistributedSampler`
            makes it, if its predictions agree: arrays as `np.allclose` has it, objects to the bit.
        group: The ranks that put their predictions together, as the loader's `group`: those of
            another group have the same ones. Default: all.

    Raises:
        ValueError: Anything else for `duplicates`.
    """

    def __init__(
        self,
        length: int,
        duplicates: Literal["raise", "drop"] = "raise",
        *,
        group: Group = None,
    ) -> None:
        if duplicates not in ("raise", "drop"):
            raise ValueError(f"duplicates is {duplicates!r}; expected 'raise' or 'drop'")
        self._length = length
        self._drops = duplicates == "drop"
        self._group = group
        ranks_of(group)  # says what is wrong with it
        self._forms: list[Form] = []
        self._indices: list[Indices] = []
        self._rows: dict[str, list[Any]] = {}  # batches of tensors, or of objects
        # Of a row's place, 4 bytes are as much as a float32 has.
        self._places = np.dtype(np.int32 if length < 2**31 else np.int64)

    def add(self, indices: Iterable[int] | Tensor, **arrays: Any) -> None:
        """Take in a batch.

        >>> Predictions(8).add(range(2), logits=torch.zeros(2, 10), name=["a", "b"])

        Args:
            indices: Of the samples in the dataset, (batch,).
            **arrays: Tensors or numpy arrays, (batch, ...), which keep their dtype and arrive on
                the CPU; or a list of objects that pickle knows, one for each sample.

        Raises:
            IndexError: An index outside of the dataset.
            ValueError: Arrays of another length than the indices, or which are not what they were
                in the batches before.
        """
        own = _as_indices(indices)
        if not arrays:
            raise ValueError("there are indices, and no predictions for them")
        if len(own) and not (own.min() >= 0 and own.max() < self._length):
            outside = own[(own < 0) | (own >= self._length)]
            raise IndexError(
                f"index {outside[0]} is outside of a dataset of {self._length} samples"
            )
        rows = {name: _as_rows(name, value) for name, value in arrays.items()}
        for name, value in rows.items():
            if len(value) != len(own):
                raise ValueError(f"{name} has {len(value)} rows for {len(own)} indices")
        forms = [_form_of(name, value) for name, value in rows.items()]
        if self._forms and forms != self._forms:
            raise ValueError(
                f"a batch has {_described(forms)}, the ones before {_described(self._forms)}"
            )
        self._forms = forms
        self._indices.append(own.astype(self._places))
        for name, value in rows.items():
            self._rows.setdefault(name, []).append(value)

    def gather(self, dst: int | None = None) -> Gathered:
        """The arrays in the order of the dataset, and of `add`'s arguments; all ranks call it.

        Tensors travel as they are, in pieces: beside the result, a rank needs memory for its own
        rows and one piece. Objects are pickled, among processes that trust each other.

        Args:
            dst: The rank of the group that gets them; the others get None for each. Default: all.

        Returns:
            Tensors, (length, ...), on the CPU, and lists of objects: to unpack, or by name.

        Raises:
            ValueError: Samples that are missing or came more than once, with how many and the
                first few; duplicates that do not agree; ranks that added different arrays. On
                every rank.
        """
        return Gathered(self._gathered(dst))

    def save(self, path: PathLike, ids: Sequence[Any] | NDArray[Any] | None = None) -> None:
        """Write the arrays to one file, whole or not at all; all ranks of the group call it.

        >>> outputs = Predictions(2)
        >>> outputs.add([0, 1], probability=torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
        >>> outputs.save("valid.parquet", ids=["a", "b"])
        >>> load("valid.parquet")["probability"][0]
        array([0.25, 0.75], dtype=float32)

        Args:
            path: `.parquet`, or `.npy` for large arrays: one structured array, which `load` maps
                into memory. Floats of 16 bits and less become float32. Rank 0 of the group writes.
            ids: What the samples are called, (length,). Default: their indices.

        Raises:
            ValueError: Another suffix, or ids of another length; what `gather` raises.
            TypeError: Objects that the file cannot hold.
        """
        columns = self._gathered(0)
        main = ranks_of(self._group).rank == 0
        distributed.together(
            lambda: write(Path(path), columns, ids) if main else None, group=self._group
        )

    def _gathered(self, dst: int | None) -> dict[str, Any]:
        group = ranks_of(self._group)
        if dst is not None and not 0 <= dst < group.size:
            raise ValueError(f"dst is {dst}; expected a rank, 0 to {group.size - 1}")
        indices, rows = self._joined()
        own = Part.of((self._length, self._drops, dst), self._forms, indices, rows)
        parts = distributed.all_gather(own, group=self._group)
        forms = next((part.forms for part in parts if part.forms), [])
        for number, part in enumerate(parts):
            if part.asked != own.asked or part.forms not in ([], forms):
                raise ValueError(
                    f"the ranks have different predictions: rank {number} has "
                    f"{_described(part.forms)} and (length, drops, dst) {part.asked}, this one "
                    f"{_described(forms)} and {own.asked}"
                )
        whole = each_once([part.spaced for part in parts], self._length)
        here = dst in (None, group.rank)
        result = Result(self._length, forms, self._drops, whole) if here else None
        bring(parts, indices, rows, result, dst, Transfer("Predictions.gather", ranks=group))
        if dst is None:  # all have put the same together, and see the same in it
            assert result is not None
            return result.checked()
        nothing = dict.fromkeys(form.name for form in forms)
        return distributed.together(
            result.checked if result else lambda: nothing, group=self._group
        )

    def _joined(self) -> tuple[Indices, list[Any]]:
        """This rank's indices and rows, each in one piece, and from now on kept so."""
        if len(self._indices) > 1 or not all(isinstance(part, range) for part in self._indices):
            parts = [np.asarray(part, dtype=self._places) for part in self._indices]
            self._indices = [_spaced(np.concatenate(parts))]
            for name, batches in self._rows.items():
                objects = isinstance(batches[0], list)
                self._rows[name] = [list(chain(*batches)) if objects else torch.cat(batches)]
        rows = [batches[0] for batches in self._rows.values()]
        return self._indices[0] if self._indices else range(0), rows


# ---------------------------------------------------------------- rows as they come


def _as_indices(indices: Iterable[int] | Tensor) -> NDArray[np.int64]:
    given = indices.cpu().numpy() if isinstance(indices, Tensor) else np.asarray(list(indices))
    if given.ndim != 1 or not (len(given) == 0 or np.issubdtype(given.dtype, np.integer)):
        raise ValueError(
            f"indices have shape {given.shape} and dtype {given.dtype}; expected integers, (batch,)"
        )
    return given.astype(np.int64)


def _as_rows(name: str, value: Any) -> Any:
    """A copy on the CPU: the caller may use its memory again."""
    if isinstance(value, list | tuple):
        # Pickled now, so that what cannot travel is an error here, and a view is sent alone.
        return [_pickle(item) for item in value]
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(f"{name} is a masked array: pass {name}.filled(...)")
    if isinstance(value, np.ndarray):
        try:  # not read-only, nor backwards, nor of another machine's order of bytes
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
    return (
        ", ".join(
            f"{f.name}: {f.dtype or 'objects'} {f.shape if f.dtype else ''}".strip() for f in forms
        )
        or "nothing"
    )


def _spaced(indices: NDArray[np.integer]) -> Indices:
    """The same indices, as a range where they are equally spaced."""
    if not len(indices):
        return range(0)
    first, last = int(indices[0]), int(indices[-1])
    step = int(indices[1]) - first if len(indices) > 1 else 1
    spaced = step > 0 and bool((np.diff(indices) == step).all())
    return range(first, last + 1, step) if spaced else indices
