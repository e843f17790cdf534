"""`.safetensors` files of other libraries."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from batteries._foreign import Most, brief, check, read_json
from batteries._optional import import_optional
from batteries.checkpoint._read_outline import CheckpointError


def library(for_: str) -> ModuleType:
    """The safetensors library, or an error that says how to install it."""
    return import_optional("safetensors.torch", needs="safetensors", for_=f"{for_} of .safetensors")


def peek_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a file as meta tensors. The header is verified."""
    lazily = library("peek").load_file  # maps the file
    try:
        return {name: tensor.to("meta") for name, tensor in lazily(path).items()}
    except OSError:
        raise
    except Exception as error:  # damage raises many kinds
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error


def files_in_index(path: Path) -> dict[str, Path]:
    """The files that an index of the Hub names, by the names of their tensors."""
    try:
        index: Any = read_json(path)
        check(index, {"weight_map": Most(dict, 10**7, Most(str, 1000))})
        if "weight_map" not in index:
            raise ValueError("it has no 'weight_map'")
        places = index["weight_map"]
        for file in places.values():
            if Path(file).name != file or not file.endswith((".safetensors", ".bin")):
                raise ValueError(f"it names the file {brief(file)}")
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not an index of the Hub: {error}") from error
    for file in sorted(set(places.values())):
        if not (path.parent / file).is_file():
            raise CheckpointError(
                f"{path} is incomplete: {path.parent / file} is missing; download it too"
            )
    return {name: path.parent / file for name, file in places.items()}
