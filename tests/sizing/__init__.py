"""Tests of settings, profile, plan and advice."""
