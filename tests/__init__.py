"""Tests of flask-workersize."""
