"""Evaluations between two steps: validation on held-out pictures, and previews."""
