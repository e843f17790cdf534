"""Optional dependencies, which are imported on first use."""

from __future__ import annotations

import importlib
from types import ModuleType


def import_optional(
    module: str,  # what to import: "torch.utils.tensorboard"
    *,
    needs: str | None = None,  # the name of the missing package for pip, if not the module's
    for_: str,  # what the user called: "TensorBoardLogger"
) -> ModuleType:
    """Import a module, or raise an error with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        needs = needs or module.partition(".")[0]
        raise ModuleNotFoundError(
            f"{for_} needs {needs}, which is not installed: pip install {needs}", name=error.name
        ) from error
