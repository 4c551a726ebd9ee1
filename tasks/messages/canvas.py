"""Between Celery's canvas and `jobs.notices.callbacks`: what a task's message asks for, and how it is sent."""

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from celery.app.task import Context
from celery.canvas import Signature, maybe_signature
from celery.exceptions import BackendError
from celery.utils.functional import maybe_list
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from core.errors import AnswerRefused, ImprintError, Unreachable
from notifications.application import PictureQuestion
from notifications.tables import TaskCall
from storage.database import AWAY
from tasks.app import app
from tasks.messages.routing import send_errback

log = logging.getLogger(__name__)

# What Celery raises while the broker or the result store is away; of a result store in Redis also plain RuntimeErrors.
_AWAY = (OperationalError, RedisError, BackendError, OSError, RuntimeError, *AWAY)
_MAX_INDEX = 10**6


def call_of(request: Context, *, waits: bool) -> TaskCall | None:
    """The task of this request, to be kept with its job; None if the task was called as a function."""
    if request.called_directly or request.is_eager or not request.id:
        return None
    index = request.group_index
    return TaskCall(
        task_id=str(request.id),
        name=str(request.task),
        job_id="",  # not known yet
        waits=waits,
        callbacks=list(request.callbacks or ()),
        errbacks=list(request.errbacks or ()),
        chain=list(request.chain or ()),
        chord=request.chord,
        root_id=request.root_id,
        parent_id=request.parent_id,
        group_id=request.group,
        group_index=index if isinstance(index, int) and 0 <= index <= _MAX_INDEX else None,
        ignore_result=bool(request.ignore_result),
    )


def leave_to_outbox(request: Context) -> None:
    """Keep Celery from sending the callbacks and the chain of an accepted request: the outbox sends them.

    Celery would send them once, from this process, and an error there would fail the task whose job was accepted.
    """
    request.callbacks = request.chain = None


class CelerySender:
    """Celery as the `TaskSender` of `jobs.notices.callbacks`."""

    def store_result(self, call: TaskCall, result: object, error: ImprintError | None) -> None:
        request = _context(call)
        if error is None:
            _try(lambda: app.backend.mark_as_done(call.task_id, result, request))
            return
        _try(
            lambda: app.backend.mark_as_failure(
                call.task_id, error, request=request, store_result=not call.ignore_result, call_errbacks=False
            )
        )

    def send_callback(
        self, call: TaskCall, signature: Any, result: object, chain: Sequence[Any] = (), *, confirm: str | None
    ) -> None:
        options: dict[str, Any] = {"parent_id": call.task_id, "root_id": call.root_id or call.task_id}
        if chain:
            options["chain"] = list(chain)
        confirmed = _confirmed(signature, confirm)
        _try(lambda: maybe_signature(confirmed, app=app).apply_async((result,), **options))

    def send_errback(self, call: TaskCall, signature: Any, error: ImprintError, *, confirm: str | None) -> None:
        # An error callback with three parameters runs inside the task that calls it, and the link of that says so. One
        # that takes a task id is a task of its own.
        after = [] if confirm is None else [_callback_ended(confirm)]
        _try(lambda: send_errback(app, _confirmed(signature, confirm), _context(call), error, after))

    def send_task(
        self, name: str, queue: str | None, args: Sequence[Any], kwargs: Mapping[str, Any], *, confirm: str | None
    ) -> None:
        options = {} if queue is None else {"queue": queue}
        signature = {"task": name, "args": list(args), "kwargs": dict(kwargs), "options": options}
        _try(lambda: maybe_signature(_confirmed(signature, confirm), app=app).apply_async())


def _callback_ended(message_id: str) -> Signature:
    return app.signature("imprint.callback_ended", (message_id,), immutable=True, queue="io", ignore_result=True)


def _confirmed(signature: Any, message_id: str | None) -> Any:
    """The signature with a link back to Imprint, and with the same id each time it is sent."""
    if message_id is None:
        return signature
    given = copy.deepcopy(signature)
    options = given.get("options") or {}
    given["options"] = {"task_id": message_id, **options} | {
        name: [*maybe_list(options.get(name) or []), _callback_ended(message_id)] for name in ("link", "link_error")
    }
    return given


def forget_results(task_ids: Iterable[str]) -> None:
    """Delete the results of tasks from the result store. Raises Unreachable while that is away."""
    for task_id in task_ids:
        _try(lambda task_id=task_id: app.backend.forget(task_id))  # type: ignore[misc]


def send_screen_task(name: str, queue: str | None, picture: PictureQuestion, back: Sequence[str]) -> None:
    """Send the application's screening task; its answer comes back to `imprint.screened`. Raises Unreachable."""
    _send_and_call_back("imprint.screened", name, queue, picture, back)


def send_caption_task(name: str, queue: str | None, picture: PictureQuestion, back: Sequence[str]) -> None:
    """Send the application's captioning task; its answer comes back to `imprint.captioned`. Raises Unreachable."""
    _send_and_call_back("imprint.captioned", name, queue, picture, back)


def _send_and_call_back(ours: str, name: str, queue: str | None, picture: PictureQuestion, back: Sequence[str]) -> None:
    """Send an application's task about a picture. Its result is the first argument of our task, before `back`.

    The message has no `expires`: a worker that is behind, or whose clock is wrong, would drop each of them unread.
    """
    link = app.signature(ours, tuple(back), queue="io")
    options: dict[str, Any] = {"link": link} | ({} if queue is None else {"queue": queue})
    _try(lambda: app.send_task(name, args=[picture.model_dump(mode="json")], **options))


def _context(call: TaskCall) -> Context:
    """The request of the task, as far as Celery needs it at its end."""
    return Context(
        id=call.task_id, task=call.name, args=[], kwargs={}, chord=call.chord, chain=call.chain, group=call.group_id,
        group_index=call.group_index, root_id=call.root_id, parent_id=call.parent_id,
        ignore_result=call.ignore_result, delivery_info={},
    )  # fmt: skip


def _try(send: Callable[[], object]) -> None:
    """Raises Unreachable or AnswerRefused, without the text of the error, which may quote what a client sent."""
    try:
        send()
    except RecursionError as error:
        raise AnswerRefused("the signature is nested too deeply") from error
    except _AWAY as error:
        raise Unreachable(f"the broker or the result store does not answer ({type(error).__name__})") from error
    except Exception as error:
        log.exception("a callback cannot be sent")
        raise AnswerRefused(f"the signature cannot be sent ({type(error).__name__})") from error
