"""Measurements behind every number that the documentation states. README.md has the results."""
