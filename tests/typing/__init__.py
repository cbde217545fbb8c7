"""The public names as a typed project uses them: mypy checks these modules, nothing runs them."""
