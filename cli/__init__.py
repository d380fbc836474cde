"""Show and run the `cluster` command: it drives a control node from a laptop, or the lab on this machine."""

SCHEMA_VERSION = 1
