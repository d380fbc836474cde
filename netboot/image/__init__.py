"""Build and keep the Linux image that every node boots: declared, the same bytes every time, kept by digest."""
