"""Serve the runners on the control node with what they share; no other package imports both Salt and the analysis."""
