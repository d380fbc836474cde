"""`cluster gpu-lab`: cards of one machine as a cluster, from bare nodes to a record of verdicts, in one command."""

from cli.gpu_lab.command import gpu_lab

__all__ = ["gpu_lab"]
