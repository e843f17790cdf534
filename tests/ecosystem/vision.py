"""torchvision where its compiled operators do not load."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from torch import library

_OWN: Any = library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
PARTLY = (
    "Its transforms and models work. Its compiled operators were not tried, because they do not "
    "load with the CPU build of torch."
)


def prepare() -> None:
    """Let torchvision be imported, by what imports it too.

    Its wheel is built for another torch than that of the CPU, and its import asks for two
    operators. They get their names alone: what calls one fails.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for operator in ("nms", "qnms"):
            _OWN.define(f"{operator}(Tensor boxes, Tensor scores, float most) -> Tensor")
        for module in [one for one in sys.modules if one.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
