"""Figures, not tests: each module prints what it measures, and one JSON object as its last line."""
