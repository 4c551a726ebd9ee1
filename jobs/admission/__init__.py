"""Admission: which waiting job is sent to the workers next, and how many are sent.

`decide` admits jobs at the end of a transaction, in the order of `statement`; `workers` knows the slots of workers.
"""
