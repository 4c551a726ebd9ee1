"""Celery's request without the arguments of the task."""

from typing import Any

from celery.worker.request import Request


class RedactedRequest(Request):  # type: ignore[misc]
    """A request whose arguments are not in events, logs and Flower, since they may contain presigned addresses."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._argsrepr = "()"
        self._kwargsrepr = "{…}"
