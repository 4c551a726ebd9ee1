"""Deletion of what an owner gave: requests, the work on one of them, and retention."""
