"""Reach a control node over ssh: one connection, commands on it, files to it."""
