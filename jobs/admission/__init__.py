"""Admission: which waiting job is sent to the workers next, and how many are sent.

`decide` has the order, `due` asks for a decision, `workers` knows the slots of live workers.
"""
