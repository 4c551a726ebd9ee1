"""A span for each of our tasks, and the trace's context in the headers of every task message.

It uses Celery's signals, because the messages after a task (the rest of its chain, a chord's body, an error callback)
are sent after our code has returned, and belong to the same trace.
"""

import threading
from typing import Any

from celery.signals import before_task_publish, task_postrun, task_prerun, worker_process_shutdown

from core.telemetry import tracing

_open = threading.local()  # of the task that this thread runs


@before_task_publish.connect
def _send_along(headers: Any = None, **_: Any) -> None:
    if isinstance(headers, dict):
        headers.update(tracing.current_headers())


@task_prerun.connect
def _begin(task: Any = None, args: Any = None, kwargs: Any = None, **_: Any) -> None:
    if not task.name.startswith("imprint."):
        return
    job_id = (kwargs or {}).get("job_id", args[0] if args else None)
    named = job_id if isinstance(job_id, str) and job_id.startswith("job_") else None
    _open.token = tracing.attach_trace({tracing.HEADER: getattr(task.request, tracing.HEADER, None)})
    _open.span = tracing.start_span(task.name, "consumer", job_id=named, task_id=str(task.request.id))


@task_postrun.connect
def _end(task: Any = None, state: Any = None, **_: Any) -> None:
    if not task.name.startswith("imprint."):
        return
    tracing.end_span(getattr(_open, "span", None), str(state) if state == "FAILURE" else None)
    tracing.detach_trace(getattr(_open, "token", None))
    _open.span = _open.token = None


@worker_process_shutdown.connect
def _flush(**_: Any) -> None:
    tracing.flush()
