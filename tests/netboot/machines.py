"""Machines and the control node that they boot from, for the netboot tests; the rehearsal has the same."""

from rehearsal.control_node import ControlNode
from rehearsal.machines import FIRMWARE, Machine, Network, end, namespace

__all__ = ["FIRMWARE", "ControlNode", "Machine", "Network", "end", "namespace"]
