"""The control node reached over ssh: one connection, commands on it, files to it."""
