"""All runs of a log directory on one page, for a browser."""

from batteries.report._page import write_report as write_report
