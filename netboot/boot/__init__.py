"""Serve boots on the control node: scripts, files, the record of every boot, enrolment."""
