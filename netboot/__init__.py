"""Bring a switched-off board to an enrolled node: images, the service that boots them, reprovisioning."""
