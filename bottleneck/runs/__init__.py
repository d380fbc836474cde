"""Read what was recorded: a run, or a scenario from elsewhere; the ceilings beside it; two sets of runs compared."""
