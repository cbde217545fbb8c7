"""waitress under a plan."""
