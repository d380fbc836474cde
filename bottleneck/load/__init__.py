"""The load generator: what it is told, how it runs, and what it recorded of every request."""
