"""What tells others of a job: webhooks, e-mails, alerts, and the callbacks of Celery tasks.

They are messages in the outbox. `outbox_sender` has them sent after each commit, `outbox_handlers` delivers them.
"""
