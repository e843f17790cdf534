"""The number of samples in a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def samples_in(batch: Any, asked: int) -> float:
    """The number of samples in a batch: what the loader asked for, if a column has this length.

    Otherwise a `collate_fn` has dropped or added samples, or `asked` is 0 (not known). Then it is
    the length that all tensors have, or the length of the first column, if that is a tensor.
    """
    parts = _parts(batch)
    # Samples have one form. Columns, such as images and labels, usually have different ones.
    forms = {(type(p), getattr(p, "ndim", None), getattr(p, "dtype", None)) for p in parts}
    columns = parts if len(forms) > 1 else [batch, *parts]
    lists = [each for each in columns if isinstance(each, list | tuple) or _is_column(each)]
    if asked and any(len(each) == asked for each in lists):
        return asked
    tensors = [*_columns_in(batch)]
    lengths = [len(each) for each in tensors]
    if len({*lengths}) == 1 or (
        lengths and any(each is tensors[0] for each in [batch, *parts[:1]])
    ):
        return lengths[0]
    raise ValueError(
        f"the batch is a {type(batch).__name__} whose number of samples is unknown; pass "
        "count=lambda batch: ... to accumulate"
    )


def _is_column(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _parts(batch: Any) -> list[Any]:
    if isinstance(batch, Mapping):
        return list(batch.values())
    return list(batch) if isinstance(batch, list | tuple) else []


def _columns_in(batch: Any) -> Iterator[Tensor]:
    if _is_column(batch):
        yield batch
    for part in _parts(batch):
        yield from _columns_in(part)
