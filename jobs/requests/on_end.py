"""`on_end` of a request: a Celery task of the application that gets the view of the job when it has ended."""

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from core.brokers.queues import is_own_queue, is_own_task

MAX_KWARGS_BYTES = 10_000
_NAME = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\s\x00-\x1f\x7f]+$")]


class OnEnd(BaseModel):
    """The task, its queue (default: `IMPRINT_CALLBACK_QUEUE`), and its keyword arguments besides the view."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: _NAME = Field(description="The name of the task. Its first argument is the view of the job.")
    queue: _NAME | None = Field(None, description="The queue of its workers.")
    kwargs: dict[str, Any] = Field({}, description="Keyword arguments for it, at most 10 kB of JSON.")

    @field_validator("task")
    @classmethod
    def _is_an_applications_task(cls, name: str) -> str:
        if is_own_task(name):
            raise ValueError("names a task of Imprint or Celery; name a task of your application")
        return name

    @field_validator("queue")
    @classmethod
    def _is_an_applications_queue(cls, name: str | None) -> str | None:
        if name is not None and is_own_queue(name):
            raise ValueError("names a queue of Imprint's workers; name the queue of your workers")
        return name

    @field_validator("kwargs")
    @classmethod
    def _is_small_json(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        try:
            size = len(json.dumps(kwargs, allow_nan=False))
        except (TypeError, ValueError, RecursionError):
            raise ValueError("must be JSON") from None
        if size > MAX_KWARGS_BYTES:
            raise ValueError(f"has {size} bytes of JSON; at most {MAX_KWARGS_BYTES} are allowed")
        return kwargs
