"""Requests to addresses that users gave: the guard, the addresses that it refuses, and the limits of its downloads.

Pictures and webhooks go through `guard.Guard`. Nothing else in the service calls a foreign address.
"""
