"""Attribute the time of an output token: by phase, node, link and resource."""
