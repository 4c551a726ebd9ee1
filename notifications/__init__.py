"""Messages to owners and operators: the outbox, and webhooks, e-mails and channels that deliver what is in it."""
