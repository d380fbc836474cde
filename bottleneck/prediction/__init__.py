"""Predict an engine's step times under another batch, length, split, link, quantisation or accelerator.

`sweep` reads what was measured, `schedule` says which steps the engine takes, `step` how long a step takes in terms of
efficiencies, `calibrate` finds the efficiencies from a few points, `evaluate` says how far off it is, `deployment`
carries the answer to another split or machine.
"""
