"""Plan from a profile: workers, probes, each node's slice, the settings of the Salt master and Prometheus."""
