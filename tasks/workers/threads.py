"""A thread pool in which no task keeps its slot for ever."""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.concurrency import thread

log = logging.getLogger(__name__)


class SteadyThreads(thread.TaskPool):  # type: ignore[misc]
    """Celery 5.7.0's pool of threads, which also hears of a task that ends outside its body.

    A broker that refuses the message of the next step refuses that of the failure too, and then Celery's tracing itself
    raises. In a thread nobody sees that: the message is never acknowledged, and the worker takes no other one in its
    slot, and says nothing. A pool of processes reports such an end to the request, and so does this one.
    `tests/faults/test_full_redis.py` fails without it.
    """

    def on_apply(
        self,
        target: Callable[..., Any],
        *args: Any,
        error_callback: Callable[[Any], object] | None = None,
        **kwargs: Any,
    ) -> Any:
        applied = super().on_apply(target, *args, **kwargs)
        applied.f.add_done_callback(lambda ended: _report(ended, error_callback))
        return applied


def _report(ended: "Future[Any]", error_callback: Callable[[Any], object] | None) -> None:
    error = None if ended.cancelled() else ended.exception()
    if not isinstance(error, Exception):  # what ends the worker is its own matter
        return
    log.error("a task ended outside its body (%s): its message is given up", type(error).__name__)
    if error_callback is None:
        return
    try:
        error_callback(ExceptionInfo((type(error), error, error.__traceback__)))
    except Exception as again:  # noqa: BLE001 - what is to be stored or sent of it is refused as well
        log.error("its failure was not reported (%s)", type(again).__name__)
