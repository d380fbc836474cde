"""The Linux image that every node boots: declared, built to the same bytes, kept by digest, made active."""
