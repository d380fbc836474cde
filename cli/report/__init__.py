"""`cluster report`: a run as one self-contained HTML page."""

from cli.report.command import report, write_report

__all__ = ["report", "write_report"]
