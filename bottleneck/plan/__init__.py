"""From a profile to what is done with it: what every node, every probe and Prometheus is told."""
