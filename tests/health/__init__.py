"""Tests of flask_workersize/health/."""
