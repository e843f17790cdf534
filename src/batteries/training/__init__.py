"""What a training loop has besides the loop: windows, steps, groups, rates."""

from batteries import _public
from batteries.training._accumulation import Window, Windows, accumulate

__all__ = [
    "Window",
    "Windows",
    "accumulate",
]
_public.own(globals())
