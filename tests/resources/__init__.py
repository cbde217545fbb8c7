"""Tests of flask_workersize/resources/."""
