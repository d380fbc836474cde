"""Exit statuses of the `cluster` command that more than one room gives."""

FAILED = 1
USAGE = 2
UNREACHABLE = 4
"""The control node cannot be reached, or does not authorise."""
