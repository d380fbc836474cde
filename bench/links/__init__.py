"""Hold predictions over links against what pairs of cards took, and write doc/reference/what-if-links.md."""
