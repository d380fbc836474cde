"""The whole road on this machine, in virtual machines: `make rehearsal`."""
