"""The named bottleneck: rules score every class from the ledger and the signals, the judge weighs them."""
