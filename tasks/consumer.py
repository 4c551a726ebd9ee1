"""A worker that outlives its broker."""

from celery.worker.consumer import Consumer


class SteadyConsumer(Consumer):  # type: ignore[misc]
    """Celery 5.7.0's consumer, less the exit when Redis restarts in mid-task.

    On a lost connection 5.7.0 collects the connection and then closes it once more, which dereferences a
    transport client that is gone and ends the worker with exit code 1. Making that second close do nothing
    is what 5.6 did. `tests/faults/test_broker_outage.py` fails without it; drop this when it passes without.
    """

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        if self.connection is not None:
            self.connection.close = lambda: None
        super().on_connection_error_after_connected(exc)
