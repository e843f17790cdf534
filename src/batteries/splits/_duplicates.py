"""Find samples that are equal, or nearly equal, by hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batteries._arrays import as_array
from batteries._optional import import_optional
from batteries.splits._tables import as_table, is_table

_STEP = 0.05  # numbers are rounded to multiples of this many standard deviations of their column
_SIDE = 9  # an image's hash compares neighbours among 9 x 9 areas
_BITS = 6  # this many of 144 bits may differ between nearly equal images
_LEAST = 16  # pixels on a side: smaller images have too similar edges
_BLOCK = 4096  # images that are compared with all others at once


def rows_of(columns: list[NDArray[Any]]) -> list[tuple[Any, ...]]:
    return list(zip(*(column.tolist() for column in columns), strict=True))


def near_hashes(data: Any, near: Literal["rounded", "images"]) -> list[NDArray[Any]]:
    """Arrays of hashes, (rows,) each. Nearly equal rows have equal hashes in one array or more."""
    if near == "images":
        return [_clusters(torch.stack([_edges(image) for image in data]))]
    if near != "rounded":
        raise ValueError(f"near is {near!r}; expected 'rounded' or 'images'")
    if not is_table(data):
        rows = [as_array([row], "rows").reshape(-1) for row in data]
        if len({len(row) for row in rows}) > 1 or any(row.dtype.kind not in "biuf" for row in rows):
            raise ValueError("near='rounded' needs a table, or rows of equally many numbers")
        data = dict(enumerate(np.array(rows).T))
    columns = list(as_table(data).values())
    # Two numbers that are near may be in different cells of one grid, but not of both grids.
    grids = [[_rounded(column, shift) for column in columns] for shift in (0.0, 0.5)]
    return [hashes(rows_of(grid)) for grid in grids]


def _rounded(column: NDArray[Any], shift: float) -> NDArray[Any]:
    if column.dtype.kind not in "iuf":
        return np.array([" ".join(str(value).casefold().split()) for value in column])
    numbers = column.astype(np.float64)
    spread = np.nanstd(np.where(np.isinf(numbers), np.nan, numbers)) if len(numbers) else 0.0
    return np.floor(numbers / ((spread or 1.0) * _STEP) + shift) + 0.0  # no -0


def _edges(image: Any) -> Tensor:
    """Where an image gets lighter, to the right and downwards: (bits,), 1 or -1."""
    gray = as_array(image, "an image").astype(np.float32)
    if gray.ndim == 3:  # channels first or last
        gray = gray.mean(int(np.argmin(gray.shape)))
    if gray.ndim != 2 or min(gray.shape) < _LEAST:
        raise ValueError(
            f"near='images' needs images of at least {_LEAST} x {_LEAST} pixels; found an array of "
            f"shape {gray.shape}"
        )
    areas = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(gray)[None], _SIDE)[0]
    lighter = torch.cat([areas.diff(dim=axis).reshape(-1) for axis in (0, 1)]) > 0
    return lighter.float() * 2 - 1


def _clusters(bits: Tensor) -> NDArray[np.int64]:
    """The number of each hash's cluster, (rows,).

    Two hashes that differ in few bits are in one cluster. So are the ends of a chain of such pairs.
    """
    sparse = import_optional("scipy.sparse", for_="near='images'")
    graphs = import_optional("scipy.sparse.csgraph", for_="near='images'")
    blocks = (bits[start : start + _BLOCK] @ bits.T for start in range(0, len(bits), _BLOCK))
    alike = [sparse.csr_array((both >= bits.shape[1] - 2 * _BITS).numpy()) for both in blocks]
    return np.asarray(graphs.connected_components(sparse.vstack(alike), directed=False)[1])


def hashes(data: Any) -> NDArray[Any]:
    return np.array([_hash_of(row) for row in data])


def _hash_of(row: Any) -> str:
    if isinstance(row, Tensor):
        row = as_array(row, "a sample")
    if isinstance(row, np.ndarray) and row.dtype != object:
        data = f"{row.dtype} {row.shape}".encode() + np.ascontiguousarray(row).tobytes()
    elif isinstance(row, list | tuple | np.ndarray):
        data = ",".join(map(_hash_of, row)).encode()
    elif isinstance(row, Mapping):
        data = ",".join(f"{key}={_hash_of(value)}" for key, value in row.items()).encode()
    elif hasattr(row, "tobytes"):  # an image of PIL
        data = f"{getattr(row, 'mode', '')} {getattr(row, 'size', '')}".encode() + row.tobytes()
    elif isinstance(row, bytes):
        data = row
    elif repr(row) == object.__repr__(row):  # its repr has only its address
        raise TypeError(f"a {type(row).__name__} cannot be compared: pass arrays, bytes or texts")
    else:
        data = repr(row).encode()
    return hashlib.blake2b(data, digest_size=16).hexdigest()
