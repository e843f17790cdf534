"""Images and histograms as plain data for every tracker."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from batteries._foreign import LARGEST
from batteries._numbers import as_number, as_whole
from batteries._optional import import_optional
from batteries._rundir.lines import BINS

_KINDS = {1: 0, 3: 2, 4: 6}  # PNG's color types by the number of channels
# Modes of Pillow whose arrays have indices of a palette, or other colors than red, green and blue.
_OTHER_COLORS = ("P", "PA", "LA", "La", "CMYK", "HSV", "LAB", "RGBX", "RGBa", "YCbCr")


class Histogram(NamedTuple):
    """The number of values between each two edges."""

    counts: list[int]
    edges: list[float]  # one more than counts
    moments: tuple[int, float, float]  # number, sum and sum of squares of the counted values
    lost: int  # values that are NaN, infinite, or as large as 1e300

    def plain(self) -> dict[str, Any]:
        return {"counts": self.counts, "edges": self.edges, "lost": self.lost}


def histogram_of(name: str, values: Any, bins: int) -> Histogram:
    bins = as_whole(bins, f"the number of bins of the histogram {name!r}")
    if not 1 <= bins <= BINS:
        raise ValueError(f"the histogram {name!r} has {bins} bins; expected 1 to {BINS}")
    numbers = _real_numbers(name, values)
    kept = numbers[np.abs(numbers) < LARGEST]
    counts, edges = np.histogram(kept, bins, _wide_enough(kept, bins))
    with np.errstate(over="ignore"):
        moments = (len(kept), float(kept.sum()), float(np.square(kept).sum()))
    return Histogram(counts.tolist(), edges.tolist(), moments, len(numbers) - len(kept))


def _real_numbers(name: str, values: Any) -> Any:
    """The values as float64, (number,)."""
    if isinstance(values, Tensor) and not values.is_complex():
        values = values.detach().to(device="cpu", dtype=torch.float64).numpy()
    kind = type(values).__name__
    with suppress(TypeError, ValueError, RuntimeError):
        given = np.asarray(values)
        kind = str(given.dtype) if hasattr(values, "dtype") else kind
        if given.dtype.kind in "biuf":
            return given.astype(np.float64).reshape(-1)
        if given.dtype.kind == "O" and given.ndim:  # of Python's own numbers, such as fractions
            return np.array([as_number(each, name) for each in given.flat])
    raise TypeError(f"the histogram {name!r} is of {kind}; expected numbers")


def _wide_enough(values: Any, bins: int) -> tuple[float, float] | None:
    """A range with enough floats for all edges; None if the values' own range has enough."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    room = bins * float(np.spacing(max(abs(low), abs(high))))
    return (low - room, high + room) if (high - low or 1) < 2 * room else None


def png_of(name: str, image: Any) -> bytes:
    """An image as the bytes of a PNG file, without another library."""
    given = image
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = image.float() if image.is_floating_point() else image
        image = (image.movedim(0, -1) if image.ndim == 3 else image).numpy()
    elif getattr(image, "mode", None) in _OTHER_COLORS:
        image = image.convert("RGBA")
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in _KINDS or 0 in pixels.shape:
        raise ValueError(
            f"the image {name!r} has the shape {tuple(np.shape(given))}; expected (height, width), "
            "(height, width, channels) of an array or (channels, height, width) of a tensor, with "
            "1, 3 or 4 channels"
        )
    if pixels.dtype.kind in "fb":
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(
                f"the image {name!r} has values from {pixels.min():.4g} to {pixels.max():.4g}; "
                "expected floats from 0 to 1, or uint8"
            )
        pixels = np.round(pixels.astype(np.float64) * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"the image {name!r} is of {pixels.dtype}; expected uint8 or floats")
    height, width, channels = pixels.shape
    head = struct.pack(">IIBBBBB", width, height, 8, _KINDS[channels], 0, 0, 0)
    lines = np.zeros((height, 1 + width * channels), np.uint8)  # the leading 0 means "no filter"
    lines[:, 1:] = pixels.reshape(height, -1)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(lines.tobytes(), 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_part(kind, data) for kind, data in parts)


def pixels_of(png: bytes) -> Any:
    """The pixels of a PNG file, (height, width, 3) uint8."""
    images = import_optional("PIL.Image", needs="pillow", for_="log_figure")
    return np.asarray(images.open(io.BytesIO(png)).convert("RGB"))


def _part(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
