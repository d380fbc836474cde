"""What the nodes' samplers and engines report: batches, the store, time series, live state, exported metrics.

The engine process on the control node imports from here; `live`, `store` and `exposition` need no NumPy.
"""
