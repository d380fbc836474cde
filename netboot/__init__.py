"""The road from a switched-off board to an enrolled node: images, and the service that boots them."""
