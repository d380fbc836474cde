"""The `cluster` command: drives a control node from a laptop, or the lab on this machine."""

SCHEMA_VERSION = 1
