"""Every fact that was measured of a run, by engine, node and link, and what makes it doubtful; `gather` starts it."""
