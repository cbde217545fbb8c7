"""Tests of flask_workersize/cli/."""
