"""All runs of a log directory on one page, for a browser."""

from batteries import _public
from batteries.report._page import write_report

__all__ = [
    "write_report",
]
_public.own(globals())
