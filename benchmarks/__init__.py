"""Benchmarks. Each module prints its measurements, and one JSON object as its last line."""
