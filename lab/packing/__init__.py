"""Pack what a lab needs on a bare machine: tools, Salt, the engine, this project, in pieces that travel alone."""

from lab.packing.build import PackError, pack

__all__ = ["PackError", "pack"]
