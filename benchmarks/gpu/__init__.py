"""Checks and measurements on a CUDA machine: `python -m benchmarks.gpu first|second|third`, or `make bench-gpu`.

It needs what trains and nothing else of the service: no broker, no database, no network, no model hub.
"""
