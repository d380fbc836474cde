"""Generate load: the workload, how it is sent, and what was recorded of every request."""
