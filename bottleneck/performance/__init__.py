"""Model performance: what a step costs in bytes, operations and messages, and how that is calibrated."""
