"""The lab: a whole cluster on this machine, each node a set of namespaces."""

from cli.lab.commands import app
from cli.lab.layout import LabError
from cli.lab.lifecycle import down, names, up
from cli.lab.running import command, restart_salt, slow, slow_disk, status, throttle

__all__ = [
    "LabError",
    "app",
    "command",
    "down",
    "names",
    "restart_salt",
    "slow",
    "slow_disk",
    "status",
    "throttle",
    "up",
]
