"""Rehearse the whole road to bare metal in virtual machines of this machine: `make rehearsal`."""
