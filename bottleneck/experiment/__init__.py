"""Causal confirmation: slow one resource at a time, see what follows, say what an upgrade would give."""
