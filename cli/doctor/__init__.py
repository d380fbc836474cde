"""`cluster doctor`: what is wrong on the laptop, the control node and the nodes, and the mend."""

from cli.doctor.command import doctor

__all__ = ["doctor"]
