"""What a task accepts: messages come from whoever reaches the broker, so ids are ids, numbers are numbers."""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from celery import Task

from core.errors import ImprintError, SpecInvalid
from core.logging import job_context, task_context

_ID = {"job_id": "job", "message_id": "msg"}
_MAX_TEXT, _MAX_NUMBER = 200, 10_000


class CheckedTask(Task):  # type: ignore[misc]
    """The base of all our tasks. One with other arguments than its own ends with SpecInvalid, before it begins."""

    abstract = True
    throws = (ImprintError,)  # our errors are answers, not accidents for the error log

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        # Celery's own tasks are made from this class too: without `celery.chord_unlock`, which takes a whole callback,
        # no dataset follows its pictures where the results are in the database.
        faults = {} if self.name.startswith("celery.") else _faults(inspect.signature(self.run), args, kwargs)
        if faults:
            raise SpecInvalid.of(faults)
        with task_context(self.name, str(self.request.id)), job_context(_job_of(args, kwargs)):
            return self.run(*args, **kwargs)  # not Task.__call__, which would hide the message's own request


def _job_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """The job that a message names: our steps and callbacks take its id first."""
    named = kwargs.get("job_id", args[0] if args else None)
    return named if isinstance(named, str) and named.startswith("job_") else None


def _faults(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, str]:
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        # The text names parameters of ours, and an argument that the sender made up.
        return {"the task's arguments": str(error)[:200]}
    found = {name: _fault(name, value, signature.parameters[name]) for name, value in given.items()}
    return {name: fault for name, fault in found.items() if fault}


def _fault(name: str, value: Any, parameter: inspect.Parameter) -> str | None:
    """What is wrong with one argument. `jobs.requests` checks those of a request (`**arguments`)."""
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        return None
    if value is None and parameter.annotation == str | None:
        return None
    if prefix := _ID.get(name):
        if isinstance(value, str) and re.fullmatch(rf"{prefix}_[0-9a-z]{{1,40}}", value):
            return None
        return f"is no id of a {'job' if prefix == 'job' else 'message'}"
    if parameter.annotation is int:
        fits = type(value) is int and 0 <= value <= _MAX_NUMBER
        return None if fits else f"is no whole number from 0 to {_MAX_NUMBER}"
    fits = isinstance(value, str) and len(value) <= _MAX_TEXT and value.isprintable()
    return None if fits else f"is no text of at most {_MAX_TEXT} characters on one line"
