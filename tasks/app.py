"""The Celery application."""

from typing import Any

from celery import Celery
from celery.concurrency import ALIASES

from core.brokers import broker
from core.settings import settings
from tasks.messages import tracing  # registers its signals in every process that sends or runs tasks
from tasks.messages.routing import AMQP, with_foreign_errbacks


class ImprintCelery(Celery):  # type: ignore[misc]
    """Celery that sends applications' callbacks to their queues, and whose commands print no password.

    `celery graph workers` would print the address of the result store, so the configuration has one without a password.
    """

    amqp_cls = AMQP
    backend_cls: str | None = None

    def _get_backend(self) -> Any:
        self.backend_cls = self.backend_cls or broker.results(settings()).url
        return with_foreign_errbacks(super()._get_backend())


ALIASES["threads"] = "tasks.workers.threads:SteadyThreads"  # before the command line is read

app = ImprintCelery(
    "imprint",
    task_cls="tasks.arguments:CheckedTask",
    include=[
        "tasks.outbox_tasks",
        "tasks.drawings",
        "tasks.ingress",
        "tasks.relay",
        "tasks.stages",
        "tasks.sweeps",
        "tasks.workers.worker",
    ],
)
app.config_from_object("celeryconfig")

__all__ = ["app", "tracing"]
