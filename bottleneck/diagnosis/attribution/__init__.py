"""Where the time of an output token went: by phase, node, link and resource."""
