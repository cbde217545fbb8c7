"""What clients see: report, metrics, probes."""
