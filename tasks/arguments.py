"""Checks of task arguments. Every client of the broker can send messages, so none of them is trusted."""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from celery import Task

from core.errors import ImprintError, SpecInvalid
from core.telemetry.logging import job_context, task_context

_ID = {
    "job_id": ("job", "a job"),
    "message_id": ("msg", "a message"),
    "fetch_id": ("fetch", "a fetch"),
    "deletion_id": ("del", "a deletion"),
    "drawing_id": ("draw", "a drawing"),
}
_MAX_TEXT, _MAX_NUMBER = 200, 10_000
# Headers of `tasks.rabbitmq.consumer` and of tasks that our workers send again: how many seconds the task should have
# waited, and how long it waits, whatever the clocks say.
REFUSED_DELAY = "imprint_refused_delay"
OWN_DELAY = "imprint_delay_s"
LONGEST_DELAY_S = 3600  # how far ahead the time of a task may be that an application sends


class CheckedTask(Task):  # type: ignore[misc]
    """The base class of all our tasks. A task with invalid arguments fails with SpecInvalid before it begins."""

    abstract = True
    throws = (ImprintError,)  # our errors are results, not incidents for the error log

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        # Celery's own tasks have this class too. `celery.chord_unlock` takes a whole callback as argument, and chords
        # need it where the results are in the database.
        faults = {} if self.name.startswith("celery.") else _faults(inspect.signature(self.run), args, kwargs)
        if (delay_s := self.request.get(REFUSED_DELAY)) is not None:
            faults["countdown"] = (
                f"countdown and eta may be at most {LONGEST_DELAY_S} s ahead, not {delay_s} s: send the task when it "
                "is due"
            )
        if faults:
            raise SpecInvalid.of(faults)
        with task_context(self.name, str(self.request.id)), job_context(_job_of(args, kwargs)):
            return self.run(*args, **kwargs)  # not Task.__call__, which would replace the message's request


def named_arguments(given: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a request by name. Raises SpecInvalid.

    One object without a name may come too: the result of the task before, in a chain. `named` takes precedence over it.
    """
    if not given:
        return dict(named)
    if len(given) > 1 or not isinstance(given[0], dict):
        kinds = ", ".join("list" if isinstance(value, list) else type(value).__name__ for value in given[:5])
        raise SpecInvalid.of(
            {
                "positional arguments": f"{kinds}: give arguments by name. Only one object with them may come without "
                "a name, as from the task before in a chain; with .si() a task ignores the result of the one before"
            }
        )
    return {**given[0], **named}


def _job_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """The job of a message: the id is the first argument of our steps and callbacks."""
    named = kwargs.get("job_id", args[0] if args else None)
    return named if isinstance(named, str) and named.startswith("job_") else None


def _faults(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, str]:
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        # The text contains parameter names and perhaps an argument of the sender.
        return {"the task's arguments": str(error)[:200]}
    found = {name: _fault(name, value, signature.parameters[name]) for name, value in given.items()}
    return {name: fault for name, fault in found.items() if fault}


def _fault(name: str, value: Any, parameter: inspect.Parameter) -> str | None:
    """What is wrong with one argument. `jobs.requests` checks those of a request: `**arguments` and `*given: Any`."""
    if parameter.kind is inspect.Parameter.VAR_KEYWORD or parameter.annotation is Any:
        return None
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        one = parameter.replace(kind=inspect.Parameter.POSITIONAL_ONLY)
        return next((fault for part in value if (fault := _fault(name, part, one))), None)
    if value is None and parameter.annotation == str | None:
        return None
    if name == "answer":  # of an application's task about a picture: `jobs.screening` and `jobs.captioning` check it
        return None
    if name == "sha256":
        is_hash = isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None
        return None if is_hash else "must be a SHA-256"
    if name in _ID:
        prefix, what = _ID[name]
        if isinstance(value, str) and re.fullmatch(rf"{prefix}_[0-9a-z]{{1,40}}", value):
            return None
        return f"must be the id of {what}"
    if parameter.annotation is int:
        fits = type(value) is int and 0 <= value <= _MAX_NUMBER
        return None if fits else f"must be a whole number from 0 to {_MAX_NUMBER}"
    fits = isinstance(value, str) and len(value) <= _MAX_TEXT and value.isprintable()
    return None if fits else f"must be one line of text of at most {_MAX_TEXT} characters"
