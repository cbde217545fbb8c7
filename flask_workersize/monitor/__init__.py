"""The process beside the server: probes, memory guard, limits, learning."""
