"""Serve the runners on the control node with what they share; the only package that imports both Salt and the analysis."""
