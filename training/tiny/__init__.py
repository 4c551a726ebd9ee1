"""Tiny base models with random weights, and tiny trainings on them."""
