"""Captions for pictures without one: a captioner on this machine, its instruction, and the wording of its answer.

`captioner.py` says what a captioner is and runs one on the device of a worker; `florence2.py` is the one that there is.
"""
