"""The lab: a whole cluster on this machine, each node a set of namespaces."""

from cli.lab.commands import app
from cli.lab.layout import LabError
from cli.lab.lifecycle import command, down, names, slow, status, throttle, up

__all__ = ["LabError", "app", "command", "down", "names", "slow", "status", "throttle", "up"]
