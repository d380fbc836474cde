"""Analyse a cluster: from a profile and measurements to a ledger and a verdict.

Its rooms stand on floors; each imports from those below it alone:

- `experiment`, `prediction`: slow a resource and see; predict another deployment or machine
- `diagnosis`: what was measured, where the time went, which cause is named
- `runs`: a run, scenarios from elsewhere, ceilings
- `load`, `plan`, `telemetry`: what is sent; what nodes get; samples, store, exporter
- `profile`: what a cluster is
- `performance`: the one model of what a step costs
"""
