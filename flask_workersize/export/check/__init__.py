"""Manifests of any make, held against the rules of an export: the rules are in ``table.py``."""
