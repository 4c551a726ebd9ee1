"""Owners: their credits, limits, tokens and sessions, and the log of who did what."""
