"""The runs of a log directory as one page."""

from batteries.report.page import write_report as write_report
