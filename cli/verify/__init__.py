"""The benchmark of verdicts: put known faults in, ask without telling, keep the score."""

from cli.verify.command import verify_verdicts

__all__ = ["verify_verdicts"]
