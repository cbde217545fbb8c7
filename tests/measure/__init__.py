"""Tests of flask_workersize/measure/."""
