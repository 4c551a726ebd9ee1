"""The Celery application."""

from typing import Any

from celery import Celery

from core import broker
from core.settings import settings
from tasks import tracing  # registers its signals in every process that sends or runs tasks


class ImprintCelery(Celery):  # type: ignore[misc]
    """Celery with an address of the result store that its commands do not print: `celery graph workers` would."""

    backend_cls: str | None = None

    def _get_backend(self) -> Any:
        self.backend_cls = self.backend_cls or broker.results(settings()).url
        return super()._get_backend()


app = ImprintCelery(
    "imprint",
    task_cls="tasks.arguments:CheckedTask",
    include=["tasks.callbacks", "tasks.ingress", "tasks.relay", "tasks.steps", "tasks.sweeps", "tasks.worker"],
)
app.config_from_object("celeryconfig")

__all__ = ["app", "tracing"]
