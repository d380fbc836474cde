"""The analysis, plain Python: from a profile to a run, from a run to the named bottleneck.

In the order in which one needs another (an import from below to above is refused by `lint-imports`):

- `profile`: what a cluster is made of, read and checked
- `plan`: what the nodes, the probes and Prometheus are told
- `load`: the load generator: what it is told, how it runs, what it recorded
- `telemetry`: what the nodes' samplers and engines report, kept, folded and exported
- `runs`: what was recorded of one deployment under one workload, and the ceilings beside it
- `signals`: every fact that was measured of a run, gathered once
- `ledger`: where the time of an output token went
- `verdict`: the rules that name the bottleneck, with their evidence
- `taxonomy`: every bottleneck that can be named
- `causal`, `whatif`: slow a resource and see; predict another deployment
"""
