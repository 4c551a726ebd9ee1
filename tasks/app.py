"""The Celery application."""

from celery import Celery

app = Celery(
    "imprint",
    include=["tasks.callbacks", "tasks.ingress", "tasks.steps", "tasks.sweeps", "tasks.worker"],
)
app.config_from_object("celeryconfig")
