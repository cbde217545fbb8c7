"""Measure the memory and CPU time of an app."""
