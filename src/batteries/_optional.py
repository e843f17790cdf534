"""Optional dependencies, which are imported on first use."""

from __future__ import annotations

import importlib
from types import ModuleType


def import_optional(
    module: str,  # what to import: "torch.utils.tensorboard"
    *,
    needs: str,  # the package that may be missing, as pip names it
    for_: str,  # what the user called: "TensorBoardLogger"
) -> ModuleType:
    """Import a module, or raise an error with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{for_} needs {needs}, which is not installed: pip install {needs}", name=error.name
        ) from error
