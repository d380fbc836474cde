"""`cluster report`: a run as one self-contained HTML page."""

from cli.report.command import report

__all__ = ["report"]
