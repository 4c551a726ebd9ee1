"""What workers tell about a message: for some tasks, not their arguments."""

from typing import Any

from celery.worker.request import Request


class RedactedRequest(Request):  # type: ignore[misc]
    """A request whose arguments stay out of events, logs and Flower: they may hold presigned addresses."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._argsrepr = "()"
        self._kwargsrepr = "{…}"
