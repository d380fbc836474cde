"""Confirm a bottleneck: slow one resource at a time, see what follows, and predict what an upgrade would give."""
