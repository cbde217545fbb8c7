"""Measure what an app really costs, and plan from that instead of from a guess."""
