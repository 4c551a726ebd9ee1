"""How messages leave this application: our tasks to our queues, applications' callbacks to theirs."""

# mypy: disable-error-code="no-untyped-call"
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from amqp.exceptions import ChannelError, NotFound
from celery import Celery
from celery.app import amqp, routes
from celery.app.task import Context
from celery.exceptions import ChordError
from kombu.entity import Exchange, Queue

from core.errors import ImprintError
from core.settings import settings

log = logging.getLogger(__name__)

_LONGEST_TEXT = 2000
_UNLOCK = "celery.chord_unlock"
# Celery's own tasks that run here. Others, such as celery.map, run an application's task.
_OURS = (_UNLOCK, "celery.backend_cleanup")


class ForeignQueue(Queue):
    """A queue that an application declares, with arguments of its own.

    RabbitMQ refuses a declaration with other arguments, and drops messages to a queue that does not exist. So a queue
    that exists is left as it is, and a missing one is made as Celery makes it.
    """

    can_cache_declaration = False  # it may be deleted

    def __init__(self, name: str = "", exchange: Any = None, routing_key: str = "", **options: Any) -> None:
        super().__init__(name, exchange or Exchange(""), routing_key or name, **options)

    def declare(self, nowait: bool = False, channel: Any = None) -> str:
        channel = channel or self.channel
        if channel.connection.client.transport.driver_type == "amqp" and not self._exists(channel):
            with channel.connection.channel() as own:
                own.queue_declare(self.name, durable=True, auto_delete=False)
        return str(self.name)

    def _exists(self, channel: Any) -> bool:
        try:
            with channel.connection.channel() as own:  # a refusal closes the channel
                own.queue_declare(self.name, passive=True)
        except NotFound:
            return False
        except ChannelError as error:  # it exists, and belongs to another connection or another user
            log.debug("the queue %s cannot be looked at: %s", self.name, error)
        return True


class Router(routes.Router):  # type: ignore[misc]
    """Celery's router, except that a task of an application never goes to a queue of our workers."""

    def route(
        self, options: dict[str, Any], name: str, args: Any = (), kwargs: Any = None, task_type: Any = None
    ) -> dict[str, Any]:
        queue = options.get("queue")
        named = queue.name if isinstance(queue, Queue) else queue
        is_foreign = not name.startswith("imprint.") and name not in _OURS
        if name == _UNLOCK:  # of a chord with a body of an application
            is_foreign = named is not None and named not in self.queues
        has_address = bool(options.get("exchange")) and bool(options.get("routing_key"))
        if not is_foreign or (named is None and has_address):
            return dict(super().route(dict(options), name, args, kwargs, task_type))
        if named is not None and not isinstance(named, str):
            raise TypeError("the name of a queue must be a text")
        place = named if named and named not in self.queues else settings().callback_queue
        return {**options, "queue": ForeignQueue(place)}


class AMQP(amqp.AMQP):  # type: ignore[misc]
    """Celery's messages, with our router."""

    def Router(self, queues: Any = None, create_missing: bool | None = None) -> Router:  # noqa: N802 - Celery's name
        return Router(self.routes, queues or self.queues, create_missing=False, app=self.app)


def with_foreign_errbacks(backend: Any) -> Any:
    """The same result backend, which sends error callbacks of applications to their workers."""
    backend.__class__ = type(type(backend).__name__, (_ForeignErrbacks, type(backend)), {})
    return backend


class _ForeignErrbacks:
    """A result backend that sends error callbacks of applications to their workers.

    Celery calls an error callback with three parameters in the process that failed, which has no code of applications.
    """

    def _call_task_errbacks(self, request: Context, exc: BaseException, traceback: Any) -> None:
        ours = [errback for errback in request.errbacks if _name_of(errback).startswith("imprint.")]
        for errback in ours:
            own = Context(vars(request) | {"errbacks": [errback]})
            try:
                super()._call_task_errbacks(own, exc, traceback)  # type: ignore[misc]
            except (TypeError, ValueError, LookupError, AttributeError) as error:  # a signature that is none
                log.error("an error callback of %s was not sent (%s)", request.id, type(error).__name__)
        for errback in request.errbacks:
            if errback in ours:
                continue
            try:
                send_errback(self.app, errback, request, exc)  # type: ignore[attr-defined]
            except Exception as error:  # noqa: BLE001 - one that cannot be sent must not keep back the others
                log.error("an error callback of %s was not sent (%s)", request.id, type(error).__name__)


def send_errback(app: Celery, errback: Any, request: Context, exc: BaseException, after: Sequence[Any] = ()) -> None:
    """Have a worker of the application call an error callback of the task `request`.

    Only that worker knows whether the callback takes the id of the task, or request, exception and traceback. Celery
    decides that when a task fails, so the worker gets a task that fails there under the same id: `celery.map` of a
    function whose name, which no worker knows, is the reason. No task of every Celery raises another exception, so code
    and message as values are in a header. `after` are error callbacks of ours that follow.
    """
    if not isinstance(errback, Mapping):
        raise TypeError("an error callback must be a signature")
    name = getattr(request, "task", None) or "imprint"
    options = errback.get("options") or {}
    address = {key: options.get(key) for key in ("queue", "exchange", "routing_key", "priority")}
    app.send_task(
        "celery.map", kwargs={"task": f"{name} failed: {_reason(exc)}", "it": []}, task_id=request.id,
        root_id=request.root_id or request.id, parent_id=request.parent_id, shadow=name,
        link_error=[dict(errback), *after], headers={"imprint": _failure(exc)},
        ignore_result=True,  # or the worker would replace the result of the task
        **{key: value for key, value in address.items() if value is not None},
    )  # fmt: skip


def _failure(exc: BaseException) -> dict[str, str]:
    """The class of an error, and of ours the code, the message and the job."""
    failure = {"type": type(exc).__name__}
    if isinstance(exc, ImprintError):  # what a task that waited for a job ends with has the values of the job
        given = {"code": exc.code, "message": exc.message} | exc.details
        failure |= {name: str(given[name])[:_LONGEST_TEXT] for name in ("code", "message", "job_id") if name in given}
    return failure


def _reason(exc: BaseException) -> str:
    """The text of our errors, and of a chord's, which quotes a result. The text of any other may contain a secret."""
    return f"{type(exc).__name__}: {exc}" if isinstance(exc, ImprintError | ChordError) else type(exc).__name__


def _name_of(errback: Any) -> str:
    return str(errback.get("task", "")) if isinstance(errback, Mapping) else ""
