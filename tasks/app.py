"""The Celery application."""

import warnings

from celery.exceptions import CPendingDeprecationWarning

from tasks import tracing  # registers its signals in every process that sends or runs tasks
from tasks.routing import ImprintCelery

# Error callbacks on chord headers would run once for each picture; Celery warns that this default may change.
warnings.filterwarnings("ignore", "task_allow_error_cb_on_chord_header", CPendingDeprecationWarning)

app = ImprintCelery(
    "imprint",
    task_cls="tasks.arguments:CheckedTask",
    include=["tasks.callbacks", "tasks.ingress", "tasks.relay", "tasks.steps", "tasks.sweeps", "tasks.worker"],
)
app.config_from_object("celeryconfig")

__all__ = ["app", "tracing"]
