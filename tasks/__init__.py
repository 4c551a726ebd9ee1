"""Celery's side of the house: an app, shells around `jobs`, sweeps, and the `imprint` command."""
