"""Telling others: an outbox written with the change it tells, and the webhooks that carry it."""
