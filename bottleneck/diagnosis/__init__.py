"""Name the bottleneck: what was observed, where the time went, how every cause scores, and which one it is."""
