"""Take in what samplers and engines report: samples, batches, the store, live state, exported metrics.

The engine process on the control node imports from here: `cluster_state`, `store` and `exporter` need no NumPy.
"""
