"""What the runners on the control node share; the only package that imports both Salt and the analysis."""
