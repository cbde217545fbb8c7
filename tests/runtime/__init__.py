"""Tests of flask_workersize/runtime/."""
