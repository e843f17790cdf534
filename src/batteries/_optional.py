"""Optional dependencies: loaded on first use, named with their install command when missing."""

from __future__ import annotations

import importlib
from types import ModuleType


def import_optional(
    module: str,  # what to import: "torch.utils.tensorboard"
    *,
    needs: str,  # the package that may be missing, as pip names it
    for_: str,  # what the user called: "TensorBoardLogger"
) -> ModuleType:
    """Import a module that the core does without."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{for_} needs {needs}, which is not installed: pip install {needs}", name=error.name
        ) from error
