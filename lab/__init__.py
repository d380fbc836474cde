"""Make a whole cluster on this machine, each node a set of namespaces."""

from lab.layout import LabError
from lab.lifecycle import copy_logs, down, names, up
from lab.operations import command, place, restart_salt, slow, slow_disk, status, throttle

__all__ = [
    "LabError",
    "command",
    "copy_logs",
    "down",
    "names",
    "place",
    "restart_salt",
    "slow",
    "slow_disk",
    "status",
    "throttle",
    "up",
]
