"""Tests of the monitor and its tasks."""
