"""Turns between owners on what only a few can use at once."""
